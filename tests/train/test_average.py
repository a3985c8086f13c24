"""What is kept of a run whose weights are averaged, beside torch's own average and one worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.optim.swa_utils import AveragedModel
from trial import all_of, good_checkpoints, losses, metrics, tiniest

from hornbook.infer.score import score
from hornbook.infer.speaker import load_speaker
from hornbook.model.config import modern
from hornbook.model.folder import load_model
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.runs.folder import RunFolder
from hornbook.shards.format import Shards
from hornbook.train.average import Average
from hornbook.train.start import fit, resume

GO, STAY = torch.zeros(()), torch.ones(())
EMA: dict[str, Any] = {"average": "ema", "steps": 12, "save_every_steps": 4, "eval_every_steps": 3}


def model_of_nothing() -> GPT:
    torch.manual_seed(0)
    return untrained(modern(vocab_size=19, context=8, n_layer=1, n_head=1, n_embd=8))


@torch.no_grad()
def wander(model: GPT) -> None:
    for parameter in model.parameters():
        parameter += torch.randn_like(parameter)


def test_over_all_steps_it_is_torchs_equal_average() -> None:
    model = model_of_nothing()
    ours, theirs = Average(dict(model.named_parameters()), share=0.5, device=torch.device("cpu")), AveragedModel(model)
    for _ in range(20):
        wander(model)
        ours.update(GO)
        theirs.update_parameters(model)
    with ours.in_place():
        for mine, other in zip(model.parameters(), theirs.module.parameters(), strict=True):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_it_weighs_steps_by_a_power_and_is_as_old_as_was_asked(share: float) -> None:
    """A weight that says which step it is of: the average of it is the average's age."""
    model = model_of_nothing()
    average = Average(dict(model.named_parameters()), share, torch.device("cpu"))
    for step in range(1, 2001):
        torch.nn.init.constant_(model.embedding.weight, step)
        average.update(GO)
    steps = np.arange(1, 2001) / 2000
    weighed = np.average(steps, weights=steps ** (1 / share - 2))
    with average.in_place():
        assert model.embedding.weight.mean().item() / 2000 == pytest.approx(weighed, rel=2e-3)
        assert model.embedding.weight.mean().item() / 2000 == pytest.approx(1 - share, abs=1e-3)
    assert model.embedding.weight.mean() == 2000


def test_a_step_that_was_left_out_does_not_count() -> None:
    model = model_of_nothing()
    ours, other = (Average(dict(model.named_parameters()), 0.1, torch.device("cpu")) for _ in range(2))
    for average in (ours, other):
        average.update(STAY)
    for step in range(6):
        wander(model)
        ours.update(GO)
        other.update(GO)
        if step % 2:
            other.update(STAY)
    with ours.in_place():
        expected = [each.clone() for each in model.parameters()]
    with other.in_place():
        assert all(torch.equal(*pair) for pair in zip(expected, model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_evaluated_and_kept_is_the_average_and_what_learns_is_not_touched(
    dtype: str, short_text: Path, tmp_path: Path
) -> None:
    config = tiniest(short_text, train=EMA | {"dtype": dtype})
    fit(config.with_(train={"average": None}), tmp_path / "plain")
    fit(config, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    checkpoint = RunFolder(tmp_path / "run").checkpoints()[0]
    newest = load_model(RunFolder(tmp_path / "plain").checkpoints()[0])
    saved = safetensors.torch.load_file(checkpoint / "optimizer.safetensors")
    for name, parameter in newest.named_parameters():
        assert torch.equal(saved[f"average.weights.{name}"], parameter), name
    kept, shards = load_model(checkpoint), Shards.open(RunFolder(tmp_path / "run").record().shards)
    assert not torch.equal(kept.embedding.weight, newest.embedding.weight)
    told = [each["val_loss"] for each in metrics(tmp_path / "run") if "val_loss" in each][-1]
    again = score(kept, shards.split("val"), 16, shards.bytes_of_text("val")).loss
    assert told == pytest.approx(again, rel=1e-6 if dtype == "float32" else 1e-2)
    assert load_speaker(tmp_path / "run", device="cpu").generate("the", max_tokens=2)


def test_before_the_first_step_it_is_what_the_run_begins_with(short_text: Path, tmp_path: Path) -> None:
    begun, first = {"eval_from_step": 0, "eval_every_steps": 12}, []
    for average in (None, "ema"):
        run = tmp_path / str(average)
        fit(tiniest(short_text, train=EMA | begun | {"average": average}), run)
        first.append(next(each["val_loss"] for each in metrics(run) if "val_loss" in each))
    assert first[0] == first[1]


def test_a_run_that_averages_is_resumed_exactly(short_text: Path, tmp_path: Path) -> None:
    config = tiniest(short_text, schedule={"kind": "constant"}, train=EMA)
    fit(config, tmp_path / "peace")
    fit(config.with_(train={"steps": 6, "eval_every_steps": 6}), tmp_path / "run")
    assert good_checkpoints(tmp_path / "run")[0] == 6
    resume(tmp_path / "run", {"train": {"steps": 12}})
    ours, theirs = all_of(tmp_path / "run"), all_of(tmp_path / "peace")
    assert ours[2:] == theirs[2:]


def test_an_evaluation_that_fails_leaves_the_weights_that_learn_in_their_place(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiniest(short_text, train=EMA | {"save_every_steps": 100})
    fit(config, tmp_path / "peace")

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr("hornbook.train.loop.generate", fails)
        with pytest.raises(RuntimeError, match="the device is gone"):
            fit(config, tmp_path / "run")
    assert good_checkpoints(tmp_path / "run") == [3]
    resume(tmp_path / "run")
    assert all_of(tmp_path / "run")[2] == all_of(tmp_path / "peace")[2]

"""Less memory, the same numbers: judged by runs and gradients that keep all activations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trial import exact, learned, losses, metrics, tiniest

from effort import long
from hornbook.base.errors import UserError
from hornbook.base.machine import choose_machine
from hornbook.model.config import ModelConfig, classic, modern
from hornbook.model.init import outline, untrained
from hornbook.runs.folder import RunFolder
from hornbook.train import cuda_graph, learner
from hornbook.train.cuda_graph import StepRecorder
from hornbook.train.learner import Learner
from hornbook.train.memory import training_memory
from hornbook.train.sizing import first_micro_batch, is_to_checkpoint_activations
from hornbook.train.start import fit, resume
from spread import spread

SIZES: dict[str, Any] = {"vocab_size": 50, "context": 16, "n_layer": 3, "n_head": 2, "n_embd": 16}
SHAPES = {
    "classic": classic(**SIZES),
    "classic, dropout": classic(**SIZES, dropout=0.2),
    "modern": modern(**SIZES, value_embeddings=True, embedding_skip=True),
    "modern, dropout": modern(**SIZES, dropout=0.2),
}
FEW = {"steps": 4, "save_every_steps": 100, "eval_every_steps": 100, "snapshots": False}
ON = {"activation_checkpointing": True}


def gradients(shape: ModelConfig, checkpoints: bool, compiled: bool = False) -> list[torch.Tensor]:
    model = spread(untrained(shape)).train()
    model.checkpoints_activations = checkpoints
    hidden = torch.compile(model.hidden, dynamic=False) if compiled else model.hidden
    ids = torch.randint(50, (4, 17), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    model.loss(hidden(ids[:, :-1]), ids[:, 1:].contiguous()).backward()
    return [each.grad for each in model.parameters() if each.grad is not None]


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_the_same_to_the_bit(shape: str) -> None:
    """What was dropped is dropped again."""
    kept, again = (gradients(SHAPES[shape], checkpoints) for checkpoints in (False, True))
    assert len(kept) == len(again) > 0
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


@long
@pytest.mark.parametrize("shape", ["classic", "modern"])
def test_compiled_gradients_are_the_same(shape: str) -> None:
    if not choose_machine("cpu").can_compile:
        pytest.skip("no C++ compiler on this machine")
    kept, again = (gradients(SHAPES[shape], checkpoints, compiled=True) for checkpoints in (False, True))
    for one, other in zip(kept, again, strict=True):
        assert (one - other).norm() <= 1e-6 * one.norm()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_run_is_the_same_and_keeps_to_it_when_it_goes_on(dtype: str, short_text: Path, tmp_path: Path) -> None:
    config = tiniest(short_text, model={"n_layer": 2}, train={"steps": 4, "dtype": dtype})
    fit(config, tmp_path / "kept")
    fit(config.with_(train=ON), tmp_path / "again")
    assert exact(metrics(tmp_path / "again")) == exact(metrics(tmp_path / "kept"))
    assert learned(tmp_path / "again") == learned(tmp_path / "kept")


class Small:
    """Memory for one sequence, if little is kept of it, but not for more."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.tried: list[tuple[int, bool]] = []
        gradients_of = learner.WorkingCopy.collect_gradients

        def collect(working: learner.WorkingCopy) -> None:
            now = (self.sequences, working.model.checkpoints_activations)
            self.tried.append(now)
            if now != (1, True):
                raise torch.OutOfMemoryError("CUDA out of memory")
            gradients_of(working)

        def take(each: Learner, take: cuda_graph.Take) -> torch.Tensor:
            def counted(first: int, count: int) -> Any:
                self.sequences = count
                return take(first, count)

            return compute(each, counted)

        compute = Learner.gradients
        patch.setattr(learner.WorkingCopy, "collect_gradients", collect)
        patch.setattr(Learner, "gradients", take)


def test_it_is_the_last_answer_to_too_little_memory(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiniest(short_text, train=FEW)
    fit(config.with_(train={"micro_batch": 1}), tmp_path / "one")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        memory = Small(patch)
        fit(config.with_(train={"micro_batch": 4, "steps": 2}, schedule={"kind": "constant"}), tmp_path / "run")
        assert memory.tried == [(4, False), (2, False), (1, False), *[(1, True)] * 8]
        assert capsys.readouterr().err.count("going on with activation checkpointing") == 1
        state = json.loads((RunFolder(tmp_path / "run").checkpoints()[0] / "state.json").read_text())
        assert (state["micro_batch"], state["checkpoints_activations"]) == (1, True)
        memory.tried.clear()
        resume(tmp_path / "run", {"train": {"steps": 3}})
        assert memory.tried == [(1, True)] * 4, "what was found out once is not tried again"
        fit(config.with_(train={"micro_batch": 4}), tmp_path / "another")
    assert losses(tmp_path / "another") == losses(tmp_path / "one")


def test_who_does_not_want_it_is_told_what_else_to_do(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Small(monkeypatch)
    with pytest.raises(UserError, match=r"lower --model\.context"):
        fit(tiniest(short_text, train={"activation_checkpointing": False}), tmp_path / "run")


def test_it_is_chosen_beforehand_where_one_sequence_would_not_fit(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"n_layer": 24, "n_embd": 64, "mlp_width": 256, "context": 256, "vocab_size": 257}
    config = tiniest(short_text, model=model, train={"batch_tokens": 1024})
    machine = choose_machine("cpu", "float32")

    def needed(at_once: int, checkpoints: bool) -> int:
        shape = outline(config.model)
        return training_memory(config, shape, at_once, torch.float32, "cpu", checkpoints).bytes

    assert needed(4, True) < needed(1, False), "the case is meant to make room for more sequences, too"
    for memory, chosen, at_once in (
        (1.01 * needed(4, False) / 0.8, False, 4),
        (1.01 * needed(1, False) / 0.8, False, 1),
        (0.99 * needed(1, False) / 0.8, True, 4),
    ):
        small = replace(machine, memory_bytes=int(memory))
        assert is_to_checkpoint_activations(config, small) == chosen
        assert first_micro_batch(config, small, chosen) == at_once
    assert not is_to_checkpoint_activations(config.with_(train={"activation_checkpointing": False}), small)
    assert not is_to_checkpoint_activations(config, small, before=False), "the run did without"
    monkeypatch.setattr("hornbook.train.start.is_to_checkpoint_activations", lambda *_: True)
    fit(tiniest(short_text, train={"steps": 1}), tmp_path / "run")
    said = "memory    activation checkpointing: without it, one sequence would not fit; a third more arithmetic"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_step_is_recorded_where_nothing_random_is_to_be_done_again(
    dropout: float, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random state cannot be read while a step is recorded."""
    taken: list[float] = []

    def record(recorder: StepRecorder, take: cuda_graph.Take, factor: float) -> cuda_graph.StepTensors:
        taken.append(factor)
        return recorder._step(take, factor)

    monkeypatch.setattr(learner, "RECORDED_ON", ("cpu",))
    monkeypatch.setattr(StepRecorder, "__call__", record)
    fit(tiniest(short_text, model={"dropout": dropout}, train=ON | {"steps": 3}), tmp_path / "run")
    assert len(taken) == (3 if dropout == 0 else 0)

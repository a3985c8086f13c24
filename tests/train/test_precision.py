"""Compute in bf16 or fp16, learn in fp32."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trial import exact, learned, losses, metrics, tiniest

from hornbook.model.config import classic
from hornbook.model.init import untrained
from hornbook.runs.folder import RunFolder
from hornbook.train import precision
from hornbook.train.guard import NON_FINITE_IN_A_ROW
from hornbook.train.metrics import StepNumbers
from hornbook.train.precision import LossScaler, WorkingCopy
from hornbook.train.start import fit, resume

SELDOM = {"save_every_steps": 100, "eval_every_steps": 100, "snapshots": False}
CONFIG = classic(vocab_size=19, context=8, n_layer=1, n_head=1, n_embd=8)


def test_gradients_of_micro_batches_are_added_in_fp32() -> None:
    """In bf16 a small gradient would be lost beside a large one."""
    master = untrained(CONFIG)
    working = WorkingCopy(master, torch.bfloat16)
    working.refresh()
    for value in (256.0, *[0.5] * 10):
        for parameter in working.model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        working.collect_gradients()
    for parameter in master.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert torch.all(parameter.grad == 261.0)
    assert torch.tensor(256.0, dtype=torch.bfloat16) + torch.tensor(0.5, dtype=torch.bfloat16) == 256.0


def test_the_working_copy_follows_its_master() -> None:
    master = untrained(CONFIG)
    working = WorkingCopy(master, torch.bfloat16)
    with torch.no_grad():
        master.embedding.weight.fill_(1.0009765625)  # between two numbers of bf16
    working.refresh()
    assert torch.all(working.model.embedding.weight == 1.0)
    assert torch.all(master.embedding.weight == 1.0009765625)
    assert working.model.head.weight is working.model.embedding.weight


def test_in_fp32_the_master_itself_computes() -> None:
    master = untrained(CONFIG)
    assert WorkingCopy(master, torch.float32).model is master


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_run_in_short_numbers_learns_in_fp32_and_stays_near_the_fp32_one(
    dtype: str, optimizer: str, short_text: Path, tmp_path: Path
) -> None:
    config = tiniest(
        short_text,
        model={"n_embd": 16, "dropout": 0.0},
        optim={"kind": optimizer, "lr": 0.01},
        train={"steps": 30, "save_every_steps": 100, "eval_every_steps": 100},
    )
    for each in ("float32", dtype):
        fit(config.with_(train={"dtype": each}), tmp_path / each)
    exact, rough = losses(tmp_path / "float32"), losses(tmp_path / dtype)
    assert exact[-1] < exact[0] - 1
    assert rough == pytest.approx(exact, rel=0.02 if dtype == "bfloat16" else 0.0025)
    assert rough != exact
    newest = RunFolder(tmp_path / dtype).checkpoints()[0]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert {each.dtype for each in load_file(newest / name).values() if each.is_floating_point()} == {torch.float32}
    weight = load_file(newest / "model.safetensors")["model.norm.weight"]
    assert not torch.equal(weight, weight.to(getattr(torch, dtype)).float())


def test_the_scale_of_the_loss_goes_where_torchs_own_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "STEPS_TO_GROW", 5)
    theirs = torch.amp.GradScaler("cpu", init_scale=precision.FIRST_SCALE, growth_interval=5)
    ours = LossScaler(torch.float16, torch.device("cpu"))
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer: Any = SimpleNamespace(param_groups=[{"params": [weight]}], step=lambda: None)
    kinds, scales = random.Random(0).choices([1.0] * 14 + [math.inf, math.nan], k=200), set()
    for kind in [*kinds, *[math.inf] * 3, *[1.0] * 16]:
        theirs.scale(weight.sum() * 0.5).backward()
        assert weight.grad is not None
        assert torch.all(weight.grad == 0.5 * ours.scale)
        weight.grad[0] *= kind
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(0.0 if math.isfinite(kind) else 1.0))
        assert ours.scale.item() == theirs.get_scale() > 1, "below which ours does not go"
        weight.grad = None
        scales.add(theirs.get_scale())
    assert len(scales) > 5


def test_gradients_too_large_for_fp16_cost_steps_and_nothing_else(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many in a row, while the scale can still fall: the run is the one that begins with the scale that fits,
    save that its first samples taught nothing."""
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**40)
    config = tiniest(short_text, schedule={"kind": "constant"}, train={"steps": 40, "dtype": "float16"} | SELDOM)
    fit(config, tmp_path / "run")
    steps = [entry for entry in metrics(tmp_path / "run") if "loss" in entry]
    overflows = [entry["step"] for entry in steps if entry["grad_norm"] is None]
    assert overflows == list(range(1, len(overflows) + 1))
    assert NON_FINITE_IN_A_ROW < len(overflows) < 30
    assert [entry["loss_scale"] for entry in steps] == [2.0 ** (40 - min(each, len(overflows))) for each in range(40)]
    told = capsys.readouterr()
    assert told.out.count("gradients past what float16 holds") == len(overflows)
    assert "not finite" not in told.err


def test_the_scale_goes_on_where_it_was(short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**27)
    monkeypatch.setattr(precision, "STEPS_TO_GROW", 3)
    config = tiniest(short_text, schedule={"kind": "constant"}, train={"steps": 40, "dtype": "float16"} | SELDOM)
    fit(config, tmp_path / "peace")
    for stop in (4, 19, 23, 40):
        run = tmp_path / "run"
        fit(config.with_(train={"steps": stop}), run) if stop == 4 else resume(run, {"train": {"steps": stop}})
    assert exact(entry for entry in metrics(tmp_path / "peace") if "loss" in entry) == exact(
        entry for entry in metrics(tmp_path / "run") if "loss" in entry
    )
    assert learned(tmp_path / "run") == learned(tmp_path / "peace")
    scales = [entry["loss_scale"] for entry in metrics(tmp_path / "run") if "loss" in entry]
    assert len({later / before for before, later in pairwise(scales)}) == 3, "it rose, fell and stayed"


def test_what_the_scale_cannot_mend_is_not_laid_at_its_door() -> None:
    assert StepNumbers(2.0, math.inf, spike=0, scale=65_536.0).overflowed
    assert StepNumbers(2.0, math.nan, spike=0, scale=2.0).overflowed
    assert not StepNumbers(2.0, math.inf, spike=0, scale=precision.LEAST_SCALE).overflowed
    assert not StepNumbers(math.nan, math.nan, spike=0, scale=65_536.0).overflowed
    assert not StepNumbers(2.0, 1.0, spike=0, scale=65_536.0).overflowed

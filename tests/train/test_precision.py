"""Compute in bf16, learn in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trial import losses, tiniest

from hornbook.model.config import classic
from hornbook.model.gpt import GPT
from hornbook.runs.folder import RunFolder
from hornbook.train.precision import WorkingCopy
from hornbook.train.start import fit

CONFIG = classic(vocab_size=19, context=8, n_layer=1, n_head=1, n_embd=8)


def test_gradients_of_micro_batches_are_added_in_fp32() -> None:
    """In bf16 a small gradient would be lost beside a large one."""
    master = GPT(CONFIG)
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
    master = GPT(CONFIG)
    working = WorkingCopy(master, torch.bfloat16)
    with torch.no_grad():
        master.embedding.weight.fill_(1.0009765625)  # between two numbers of bf16
    working.refresh()
    assert torch.all(working.model.embedding.weight == 1.0)
    assert torch.all(master.embedding.weight == 1.0009765625)
    assert working.model.head.weight is working.model.embedding.weight


def test_in_fp32_the_master_itself_computes() -> None:
    master = GPT(CONFIG)
    assert WorkingCopy(master, torch.float32).model is master


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_bf16_run_learns_in_fp32_and_stays_near_the_fp32_one(
    optimizer: str, short_text: Path, tmp_path: Path
) -> None:
    config = tiniest(
        short_text,
        model={"n_embd": 16, "dropout": 0.0},
        optim={"kind": optimizer, "lr": 0.01},
        train={"steps": 30, "save_every_steps": 100, "eval_every_steps": 100},
    )
    for dtype in ("float32", "bfloat16"):
        fit(config.with_(train={"dtype": dtype}), tmp_path / dtype)
    exact, rough = losses(tmp_path / "float32"), losses(tmp_path / "bfloat16")
    assert exact[-1] < exact[0] - 1
    assert rough == pytest.approx(exact, rel=0.02)
    assert rough != exact
    newest = RunFolder(tmp_path / "bfloat16").checkpoints()[0]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert {tensor.dtype for tensor in load_file(newest / name).values()} == {torch.float32}
    weight = load_file(newest / "model.safetensors")["model.norm.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hornbook.base.console import Progress
from hornbook.model.config import classic, modern
from hornbook.train import loop
from hornbook.train.config import RunConfig
from hornbook.train.start import fit
from rounding import rounding

SEQUENCES = 8


@pytest.fixture
def assembled(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., loop.Run]:
    """A run as `fit` assembles it, before its first step."""

    def assemble(**knobs: Any) -> loop.Run:
        runs: list[loop.Run] = []

        def look(run: loop.Run) -> str:
            runs.append(run)
            run.metrics.close()
            return "looked at"

        monkeypatch.setattr(loop, "train", look)
        fit(tiny(**knobs), tmp_path / "run", Progress())
        with torch.no_grad():  # projections that begin at zero would leave most gradients zero as well
            for parameter in runs[0].learner.model.parameters():
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
        return runs[0]

    return assemble


def gradients_of(run: loop.Run, micro_batch: int) -> tuple[float, list[torch.Tensor]]:
    run.learner.micro_batch = micro_batch
    loss = run.learner.gradients(run.loader.take)
    return loss.item(), [p.grad.clone() for p in run.learner.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("preset", [classic, modern])
def test_micro_batches_add_up_to_the_gradients_of_the_one_large_batch(
    preset: Callable[..., Any], assembled: Callable[..., loop.Run]
) -> None:
    run = assembled(model=preset(n_layer=2, n_head=2, n_embd=32, context=32).model_dump())
    assert run.config.sequences == SEQUENCES
    whole_loss, whole = gradients_of(run, SEQUENCES)
    assert len(whole) == len(list(run.learner.model.parameters()))
    terms = max(float(each.norm()) for each in whole)
    for micro_batch in (1, 2, 3, 5, 7):
        loss, cut = gradients_of(run, micro_batch)
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        for one, other in zip(whole, cut, strict=True):
            assert one.any()
            # Sums over all tokens of the batch; the gradient of a key's bias cancels out to nothing but rounding.
            assert (one - other).norm() < rounding(SEQUENCES * 32) * max(float(one.norm()), 1e-3 * terms)


def test_the_gradients_are_those_of_the_mean_loss_over_all_tokens(assembled: Callable[..., loop.Run]) -> None:
    run = assembled(model={"tied": True})
    loss, ours = gradients_of(run, 3)
    ids, targets = run.loader.take(run.state.sample, SEQUENCES)
    theirs = F.cross_entropy(run.learner.model.logits(ids).flatten(0, 1), targets.flatten())
    assert loss == pytest.approx(theirs.item(), rel=1e-6)
    for one, other in zip(ours, torch.autograd.grad(theirs, list(run.learner.model.parameters())), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_gradients_computed_in_bf16_add_up_in_fp32(assembled: Callable[..., loop.Run]) -> None:
    run = assembled(train={"dtype": "bfloat16"})
    _, whole = gradients_of(run, SEQUENCES)
    _, cut = gradients_of(run, 1)
    for one, other in zip(whole, cut, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.05 * one.norm()

"""Judged by torch's own cross-entropy in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hornbook.model.loss import capped, cross_entropy_sum, rows_at_once, token_losses
from rounding import rounding

GPT2_VOCABULARY = 50_257


def batch(rows: int, width: int, vocab_size: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows + vocab_size)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab_size, width, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(vocab_size, (rows,), generator=generator)


def judged(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, upstream: float
) -> tuple[torch.Tensor, ...]:
    """The loss and both gradients, all logits at once."""
    hidden, weight = (each.detach().double().requires_grad_() for each in (hidden, weight))
    loss = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    return loss.detach(), *torch.autograd.grad(loss * upstream, (hidden, weight))


def tolerance(hidden: torch.Tensor, weight: torch.Tensor) -> float:
    """Relative, of the loss and of gradients. A probability is off by as much as the sum over the vocabulary that it
    is divided by, and by as much as its logit, absolutely; a gradient sums over the vocabulary or over the rows."""
    with torch.no_grad():
        largest = float((hidden.abs() @ weight.abs().T).max())  # the sum of magnitudes behind a logit
    longest = max(len(weight), len(hidden))
    return 2 * rounding(longest, hidden.dtype) + largest * rounding(hidden.shape[-1], hidden.dtype)


def off_by(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(
    ("rows", "width", "vocab_size"),
    [(1, 4, 2), (37, 8, 257), (1001, 12, 5003), (100, 8, GPT2_VOCABULARY)],
    ids=["smallest", "one piece", "several pieces", "large vocabulary"],
)
@pytest.mark.parametrize("upstream", [1.0, 1 / 768, -2.5])
def test_loss_and_gradients_are_those_of_cross_entropy(rows: int, width: int, vocab_size: int, upstream: float) -> None:
    hidden, weight, targets = batch(rows, width, vocab_size)
    loss = cross_entropy_sum(hidden, weight, targets)
    (loss * upstream).backward()
    theirs = judged(hidden, weight, targets, upstream)
    assert hidden.grad is not None
    assert weight.grad is not None
    within = tolerance(hidden, weight)
    assert within < 1e-3, "a tolerance that no mistake of ours could hide in"
    assert off_by(loss.detach(), theirs[0]) < within
    assert off_by(hidden.grad, theirs[1]) < within
    assert off_by(weight.grad, theirs[2]) < within


def assert_near(
    hidden: torch.Tensor, weight: torch.Tensor, loss: torch.Tensor, theirs: tuple[torch.Tensor, ...]
) -> None:
    assert hidden.grad is not None
    assert weight.grad is not None
    assert off_by(loss.detach(), theirs[0]) < 1e-3
    assert off_by(hidden.grad, theirs[1]) < 1e-2
    assert off_by(weight.grad, theirs[2]) < 1e-2


def test_in_bf16_loss_and_gradients_stay_near_those_of_float64() -> None:
    hidden, weight, targets = batch(1001, 16, 5003, torch.bfloat16)
    loss = cross_entropy_sum(hidden, weight, targets)
    loss.backward()
    theirs = judged(hidden, weight, targets, 1.0)
    assert_near(hidden, weight, loss, theirs)


def test_in_fp16_a_hopeless_token_counts_in_full() -> None:
    """Its probability is far below the smallest number, so its loss is told by the likeliest token's."""
    hidden, weight, targets = batch(200, 16, 503, torch.float16)
    hidden = (hidden.detach() * 4).requires_grad_()
    likelihoods = (hidden.double() @ weight.double().T).softmax(dim=-1).gather(1, targets[:, None])
    assert likelihoods.min() < 1e-20
    loss = cross_entropy_sum(hidden, weight, targets)
    loss.backward(torch.tensor(64.0))
    theirs = judged(hidden, weight, targets, 64.0)
    assert_near(hidden, weight, loss, theirs)


def test_in_fp16_a_sum_over_many_tokens_does_not_overflow() -> None:
    """Of one token in a vocabulary so small that all of them are a single piece."""
    rows = 100_000
    hidden, weight, _ = batch(rows, 4, 8, torch.float16)
    hidden = (hidden.detach() + 4).requires_grad_()
    targets = torch.zeros(rows, dtype=torch.int64)
    cross_entropy_sum(hidden, weight, targets).backward(torch.tensor(1 / rows))
    theirs = judged(hidden, weight, targets, 1 / rows)[2]
    assert weight.grad is not None
    assert theirs.abs().max() * rows > torch.finfo(torch.float16).max
    assert off_by(weight.grad, theirs) < 1e-2


@pytest.mark.parametrize("surplus", [3.0, 5.0, 7.0, 9.0])
def test_what_is_nearly_certain_in_bf16_has_its_own_loss(surplus: float) -> None:
    """A probability above 0.998 is 1 there: without care such a loss is 0, and a target loss is reached too early."""
    hidden = torch.full((4, 1), surplus, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(8, 1, dtype=torch.bfloat16)
    weight[2] = 1.0
    loss = cross_entropy_sum(hidden, weight, torch.full((4,), 2))
    assert loss.item() == pytest.approx(4 * math.log1p(7 * math.exp(-surplus)), rel=0.02)


def test_a_batch_keeps_its_shape_in_its_gradient() -> None:
    flat, weight, targets = batch(24, 8, 50)
    hidden = flat.detach().view(2, 3, 4, 8).requires_grad_()
    cross_entropy_sum(hidden, weight, targets.view(2, 3, 4)).backward()
    cross_entropy_sum(flat, weight, targets).backward()
    assert hidden.grad is not None
    assert flat.grad is not None
    assert torch.equal(hidden.grad.view(24, 8), flat.grad)


def test_an_unlikely_target_counts_in_full() -> None:
    hidden, weight, targets = batch(10, 8, 50)
    hidden = (hidden.detach() * 5).requires_grad_()
    loss = cross_entropy_sum(hidden, weight, targets)
    likelihoods = (hidden @ weight.T).softmax(dim=-1).gather(1, targets[:, None])
    assert likelihoods.min() < 1e-20, "the case is meant to hold very unlikely targets"
    assert off_by(loss.detach(), judged(hidden, weight, targets, 1.0)[0]) < tolerance(hidden, weight)


def test_logits_far_beyond_what_probabilities_can_hold_still_teach() -> None:
    hidden, weight, targets = batch(10, 8, 50)
    hidden = (hidden.detach() * 100).requires_grad_()
    loss = cross_entropy_sum(hidden, weight, targets)
    loss.backward()
    assert loss.isfinite()
    assert hidden.grad is not None
    assert off_by(hidden.grad, judged(hidden, weight, targets, 1.0)[1]) < tolerance(hidden, weight)


def test_losses_of_tokens_are_those_of_cross_entropy() -> None:
    hidden, weight, targets = batch(90, 8, GPT2_VOCABULARY)
    ours = token_losses(hidden.view(9, 10, 8), lambda states: states @ weight.T, GPT2_VOCABULARY, targets.view(9, 10))
    theirs = F.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="none")
    assert ours.shape == (9, 10)
    within = tolerance(hidden, weight)  # of a loss, which is a logarithm, absolutely
    assert torch.allclose(ours.flatten().double(), theirs, rtol=within, atol=within)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation hands out."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return out


def test_the_logits_of_a_large_vocabulary_never_exist_all_at_once() -> None:
    hidden, weight, targets = batch(1100, 8, GPT2_VOCABULARY)
    with Largest() as learning:
        cross_entropy_sum(hidden, weight, targets).backward()
    with Largest() as scoring:
        token_losses(hidden, lambda states: states @ weight.T, GPT2_VOCABULARY, targets)
    rows = rows_at_once(GPT2_VOCABULARY, on_cuda=False)
    assert rows < 1100 / 2
    assert weight.numel() < learning.elements <= rows * GPT2_VOCABULARY
    assert weight.numel() < scoring.elements <= rows * GPT2_VOCABULARY


@pytest.mark.parametrize("cap", [None, 0.7, 15.0])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_a_bias_and_a_cap_bear_on_loss_and_gradients(cap: float | None, biased: bool) -> None:
    hidden, weight, targets = batch(101, 8, 257)
    bias = torch.randn(257, generator=torch.Generator().manual_seed(3)).requires_grad_() if biased else None
    inputs = [each for each in (hidden, weight, bias) if each is not None]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    logits = F.linear(*exact)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    theirs = F.cross_entropy(logits, targets, reduction="sum")
    ours = cross_entropy_sum(hidden, weight, targets, bias, cap)
    within = tolerance(hidden, weight)
    assert off_by(ours.detach(), theirs.detach()) < within
    gradients = zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, exact), strict=True)
    assert all(off_by(mine, wanted) < within for mine, wanted in gradients)
    each = token_losses(hidden, lambda states: capped(F.linear(states, weight, bias), cap), 257, targets)
    assert off_by(each.sum(), theirs.detach()) < within

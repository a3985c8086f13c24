"""Cross-entropy of the next token, without ever holding all logits.

In: hidden states (N, C), the head's weight (V, C) and, where it has them, its bias (V,) and the cap that its logits are
squashed under, targets (N,).  Out: the sum of the losses, in fp32.
At GPT-2's vocabulary the logits of a batch are larger than everything else together. So tokens go through the head a
piece at a time, and each piece leaves its gradients behind while its logits are still in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

# Logits held at once: on CUDA, or elsewhere, where they should stay in the processor's cache.
PIECE_LOGITS = {True: 2**28, False: 2**21}
LEAST_ROWS = 512
# CUDA's fast kernels want a multiple of this; the vocabulary is padded for the product alone, and stored nowhere.
VOCAB_MULTIPLE = 64
# In bf16 a hopeless token has probability 0; its loss is then told as 85, rather than as infinite.
SMALLEST_PROBABILITY = 1e-37
NEAR_ONE = 0.9
# Fp16 ends at 65,504: a sum over the tokens of a piece may be more, one of states so much smaller is not.
SHRINK = {torch.float16: 64}


def cross_entropy_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    cap: float | None = None,
) -> torch.Tensor:
    """The summed loss of states (..., C) that should have led to targets (...)."""
    loss: torch.Tensor = _CrossEntropySum.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, -2), weight, targets.flatten(), bias, cap
    )
    return loss


@torch.no_grad()
def token_losses(
    hidden: torch.Tensor,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    vocab_size: int,
    targets: torch.Tensor,
) -> torch.Tensor:
    """The loss of each token, in fp32, in the shape of `targets`; `logits_of` makes logits of hidden states."""
    states, wanted = hidden.flatten(0, -2), targets.flatten()
    losses = [
        F.cross_entropy(logits_of(states[piece]).float(), wanted[piece], reduction="none")
        for piece in _pieces(len(wanted), vocab_size, hidden.is_cuda)
    ]
    return torch.cat(losses).view(targets.shape)


def capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Small logits as they are, large ones squashed towards the cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


class _CrossEntropySum(torch.autograd.Function):
    """Forward computes the gradients as well; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None,
        cap: float | None,
    ) -> torch.Tensor:
        vocab_size = weight.shape[0]
        ctx.has_bias, ctx.vocab_size = bias is not None, vocab_size
        if weight.is_cuda and vocab_size % VOCAB_MULTIPLE:
            weight = F.pad(weight, (0, 0, 0, -vocab_size % VOCAB_MULTIPLE))
            bias = F.pad(bias, (0, -vocab_size % VOCAB_MULTIPLE)) if bias is not None else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden)
        # Summed over many pieces, so in fp32 whatever the weight is in.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        bias_gradient = torch.zeros_like(weight_gradient[:, 0]) if bias is not None else None
        for piece in _pieces(len(targets), weight.shape[0], weight.is_cuda):
            states, wanted = hidden[piece], targets[piece]
            logits = F.linear(states, weight, bias)  # (n, V)
            squashed = logits.div_(cap).tanh_().clone() if cap is not None else None
            if cap is not None:
                logits *= cap
            logits[:, vocab_size:] = float("-inf")
            behind, told_by = _likelier(logits, wanted)
            # In place, in the numbers that the model computes in: a pass over the logits costs more than the product.
            probabilities = torch.softmax(logits, dim=-1, out=logits)
            flat = probabilities.view(-1)
            rows = torch.arange(0, len(flat), weight.shape[0], device=flat.device)
            total += (behind - _logarithms(flat[rows + told_by], probabilities, told_by)).sum()
            flat[rows + wanted] -= 1  # scatter_ would copy everything first
            gradient = probabilities  # d loss / d logits = probabilities - one-hot
            if squashed is not None:
                gradient *= 1 - squashed.square_()
            torch.mm(gradient, weight, out=hidden_gradient[piece])
            shrink = SHRINK.get(states.dtype, 1)
            product = gradient.T @ (states if shrink == 1 else states / shrink)
            weight_gradient.add_(product, alpha=shrink)
            if bias_gradient is not None:
                bias_gradient += gradient.sum(dim=0, dtype=torch.float32)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient, weight_gradient, bias_gradient = ctx.saved_tensors
        dtype = hidden_gradient.dtype
        whole = (weight_gradient[: ctx.vocab_size] * upstream).to(dtype)
        of_bias = (bias_gradient[: ctx.vocab_size] * upstream).to(dtype) if ctx.has_bias else None
        return hidden_gradient * upstream.to(dtype), whole, None, of_bias, None


def _likelier(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor]:
    """By which of each row's probabilities a target's is told, and how far its logit stands behind that one's. In fp16,
    where a probability below 6e-8 is none, by the largest; else by its own."""
    if logits.dtype != torch.float16:
        return 0.0, wanted
    largest, places = logits.max(dim=-1)
    return largest.float() - logits.gather(-1, wanted[:, None]).flatten().float(), places


def _logarithms(likelihood: torch.Tensor, probabilities: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Of the probabilities `wanted`, in fp32. In bf16 one near 1 is rounded to 1, and its loss would be told as 0;
    those of all others together are small, and known as exactly as any. On CUDA, where to find the few would mean to
    wait for the device, it is left at that."""
    logarithms = likelihood.float().clamp(min=SMALLEST_PROBABILITY).log()
    if likelihood.dtype != torch.float32 and not likelihood.is_cuda:
        near = (likelihood > NEAR_ONE).nonzero().flatten()
        others = probabilities[near].float()
        others[torch.arange(len(near)), wanted[near]] = 0.0
        logarithms[near] = torch.log1p(-others.sum(dim=-1).clamp(max=1 - NEAR_ONE))
    return logarithms


def rows_at_once(vocab_size: int, on_cuda: bool) -> int:
    """As many as leave a piece in reach of the processor; but for each piece the whole head is read, and its gradient
    too, which of a large vocabulary takes longer than the product, unless there are enough rows."""
    return PIECE_LOGITS[True] // vocab_size if on_cuda else max(PIECE_LOGITS[False] // vocab_size, LEAST_ROWS)


def _pieces(tokens: int, vocab_size: int, on_cuda: bool) -> Iterator[slice]:
    rows = max(rows_at_once(vocab_size, on_cuda), 1)
    return (slice(first, min(first + rows, tokens)) for first in range(0, tokens, rows))

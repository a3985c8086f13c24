"""Cross-entropy of the next token, without ever holding all logits.

In: hidden states (N, C), the head's weight (V, C), targets (N,).  Out: the sum of the losses, in fp32.
At GPT-2's vocabulary the logits of a batch are larger than everything else together. So tokens go through the head a
piece at a time, and each piece leaves its gradients behind while its logits are still in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

# Logits held at once: on CUDA, or elsewhere, where they should stay in the processor's cache.
PIECE_LOGITS = {True: 2**28, False: 2**21}
# CUDA's fast kernels want a multiple of this; the vocabulary is padded for the product alone, and stored nowhere.
VOCAB_MULTIPLE = 64
# In bf16 a hopeless token has probability 0; its loss is then told as 85, rather than as infinite.
SMALLEST_PROBABILITY = 1e-37


def cross_entropy_sum(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The summed loss of states (..., C) that should have led to targets (...)."""
    loss: torch.Tensor = _CrossEntropySum.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, -2), weight, targets.flatten()
    )
    return loss


@torch.no_grad()
def token_losses(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of each token, in fp32, in the shape of `targets`."""
    states, wanted = hidden.flatten(0, -2), targets.flatten()
    losses = [
        F.cross_entropy((states[piece] @ weight.T).float(), wanted[piece], reduction="none")
        for piece in _pieces(len(wanted), weight)
    ]
    return torch.cat(losses).view(targets.shape)


class _CrossEntropySum(torch.autograd.Function):
    """Forward computes the gradients as well; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        vocab_size = weight.shape[0]
        if weight.is_cuda and vocab_size % VOCAB_MULTIPLE:
            weight = F.pad(weight, (0, 0, 0, -vocab_size % VOCAB_MULTIPLE))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden)
        # Summed over many pieces, so in fp32 whatever the weight is in.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        for piece in _pieces(len(targets), weight):
            states, wanted = hidden[piece], targets[piece]
            logits = states @ weight.T  # (n, V)
            logits[:, vocab_size:] = float("-inf")
            # In place, in the numbers that the model computes in: a pass over the logits costs more than the product.
            probabilities = torch.softmax(logits, dim=-1, out=logits)
            flat = probabilities.view(-1)
            places = torch.arange(0, len(flat), weight.shape[0], device=flat.device) + wanted
            likelihood = flat[places]
            total -= likelihood.float().clamp(min=SMALLEST_PROBABILITY).log().sum()
            flat[places] = likelihood - 1  # scatter_ would copy everything first
            gradient = probabilities  # d loss / d logits = probabilities - one-hot
            torch.mm(gradient, weight, out=hidden_gradient[piece])
            weight_gradient += gradient.T @ states
        ctx.save_for_backward(hidden_gradient, weight_gradient[:vocab_size])
        return total

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = upstream.to(hidden_gradient.dtype)
        return hidden_gradient * scale, (weight_gradient * upstream).to(hidden_gradient.dtype), None


def _pieces(tokens: int, weight: torch.Tensor) -> Iterator[slice]:
    rows = max(PIECE_LOGITS[weight.is_cuda] // weight.shape[0], 16)
    return (slice(first, min(first + rows, tokens)) for first in range(0, tokens, rows))

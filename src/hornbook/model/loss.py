"""Cross-entropy of the next token, without ever holding all logits.

In: hidden states (N, C), the head's weight (V, C), targets (N,).  Out: the sum of the losses, in fp32.
At GPT-2's vocabulary the logits of a batch are larger than everything else together. So tokens go through the head a
piece at a time, and each piece leaves its gradients behind while its logits are still in the processor's cache.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

# Logits held at once: on CUDA, or elsewhere, where they should stay in the processor's cache.
PIECE_LOGITS = {True: 2**28, False: 2**21}
# CUDA's fast kernels want a multiple of this; the vocabulary is padded for the product alone, and stored nowhere.
VOCAB_MULTIPLE = 64


def cross_entropy_sum(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The summed loss; an ignored target is -1."""
    loss: torch.Tensor = _CrossEntropySum.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, -2), weight, targets.flatten()
    )
    return loss


@torch.no_grad()
def token_losses(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of each token, in fp32, in the shape of `targets`."""
    pieces = []
    for states, wanted in _pieces(hidden.flatten(0, -2), targets.flatten(), weight):
        pieces.append(F.cross_entropy((states @ weight.T).float(), wanted, ignore_index=-1, reduction="none"))
    return torch.cat(pieces).view(targets.shape)


class _CrossEntropySum(torch.autograd.Function):
    """Forward computes the gradients as well; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        needs_gradients = any(ctx.needs_input_grad[:2])
        vocab_size = weight.shape[0]
        if weight.is_cuda and vocab_size % VOCAB_MULTIPLE:
            weight = F.pad(weight, (0, 0, 0, -vocab_size % VOCAB_MULTIPLE))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if needs_gradients else None
        # Summed over many pieces, so in fp32 whatever the weight is in.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needs_gradients else None
        done = 0
        for states, wanted in _pieces(hidden, targets, weight):
            logits = (states @ weight.T).float()  # (n, V)
            if weight.shape[0] > vocab_size:
                logits[:, vocab_size:] = float("-inf")
            counted = wanted >= 0
            wanted = wanted.clamp(min=0)[:, None]
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            losses = log_sum - logits.gather(1, wanted)
            total += torch.where(counted, losses.squeeze(1), 0.0).sum()
            if hidden_gradient is not None and weight_gradient is not None:
                # d loss / d logits = softmax - one-hot
                gradient = logits.sub_(log_sum).exp_()
                gradient.scatter_add_(1, wanted, torch.full_like(losses, -1.0))
                gradient = (gradient * counted[:, None]).to(states.dtype)
                torch.mm(gradient, weight, out=hidden_gradient[done : done + len(states)])
                weight_gradient += gradient.T @ states
            done += len(states)
        if hidden_gradient is not None and weight_gradient is not None:
            ctx.save_for_backward(hidden_gradient, weight_gradient[:vocab_size].to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = upstream.to(hidden_gradient.dtype)
        return hidden_gradient * scale, weight_gradient * scale, None


def _pieces(
    hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows = max(PIECE_LOGITS[hidden.is_cuda] // weight.shape[0], 16)
    return list(zip(hidden.split(rows), targets.split(rows), strict=True))

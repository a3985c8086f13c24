"""Muon: momentum whose every direction is made equally long.

In: gradients of matrices.  Out: updates that are nearly orthogonal.
Matrices of one shape are stacked and orthogonalised together: a few large products instead of many small ones.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch

# Coefficients of five Newton-Schulz steps that take singular values from (0, 1] to about 1 (Keller Jordan's quintic).
QUINTIC = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon:
    def __init__(
        self, named: dict[str, torch.nn.Parameter], momentum: float, weight_decay: float, compute: torch.dtype
    ) -> None:
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._compute = compute
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, parameter in named.items():
            by_shape[parameter.shape].append(name)
        # Each stack: its parameters, and their momentum as one tensor (n, rows, columns).
        self._stacks = [
            ([named[name] for name in names], torch.zeros_like(torch.stack([named[name].detach() for name in names])))
            for names in by_shape.values()
        ]
        self.buffers = {
            name: momenta[place]
            for names, (_, momenta) in zip(by_shape.values(), self._stacks, strict=True)
            for place, name in enumerate(names)
        }

    @torch.no_grad()
    def step(self, lr: float | torch.Tensor, skip: torch.Tensor) -> None:
        """One update; where `skip` is 1, none, and the momentum stays as it was."""
        keep = 1 - skip
        for parameters, momenta in self._stacks:
            gradients = torch.stack([_gradient(parameter) for parameter in parameters])
            gradients.nan_to_num_(0.0, 0.0, 0.0)  # what is not finite is skipped, but zero times it would not be zero
            momenta.lerp_(gradients, (1 - self._momentum) * keep)
            ahead = gradients.lerp_(momenta, self._momentum)  # Nesterov's look ahead
            rows, columns = parameters[0].shape
            updates = orthogonalised(ahead, self._compute)
            updates *= -lr * math.sqrt(max(1.0, rows / columns)) * keep
            matrices: list[torch.Tensor] = list(parameters)
            torch._foreach_mul_(matrices, 1 - lr * self._weight_decay * keep)
            torch._foreach_add_(matrices, updates.unbind())


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def orthogonalised(matrices: torch.Tensor, compute: torch.dtype = torch.float32) -> torch.Tensor:
    """(n, rows, columns) to matrices with the same directions, all singular values near 1."""
    x = matrices.to(compute)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    turned = x.shape[-2] > x.shape[-1]
    x = x.mT if turned else x
    a, b, c = QUINTIC
    for _ in range(NEWTON_SCHULZ_STEPS):
        squared = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(squared, squared, squared, beta=b, alpha=c), x, beta=a)
    return (x.mT if turned else x).to(matrices.dtype)

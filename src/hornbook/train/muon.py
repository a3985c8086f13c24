"""Muon: momentum, orthogonalised by Newton-Schulz.

In: gradients of matrices.  Out: updates that are nearly orthogonal.
Matrices of one shape are stacked and orthogonalised together: a few large products instead of many small ones.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from hornbook.train.optim import Memory, Named, fill, gradient_of
from hornbook.train.optim_config import Group, OptimConfig

# Three Newton-Schulz steps, each by the quintic that brings what the one before left nearest to 1, so that 0.01
# of the whole length becomes 0.73 to 1.27 (Amsel and others, "The Polar Express"). A run learns as much by them as by
# five steps of Keller Jordan's one quintic, at three fifths of the products.
QUINTICS = ((8.0934, -23.6205, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))
# With so many times as many columns as rows, iterating on the Gram matrix takes less arithmetic than on the matrix.
OBLONG = 2


class Muon:
    def __init__(self, named: Named, group: Group, config: OptimConfig, compute: torch.dtype) -> None:
        self._lr, self._weight_decay, self._momentum = group.lr, group.weight_decay, config.momentum
        self._compute = compute
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, parameter in named.items():
            by_shape[parameter.shape].append(name)
        # Each stack: its parameters, and their momentum as one tensor (n, rows, columns).
        self._stacks = [
            ([named[name] for name in names], torch.zeros_like(torch.stack([named[name].detach() for name in names])))
            for names in by_shape.values()
        ]
        self._momenta = {
            f"muon.{name}": momenta[place]
            for names, (_, momenta) in zip(by_shape.values(), self._stacks, strict=True)
            for place, name in enumerate(names)
        }

    @torch.no_grad()
    def step(self, factor: float | torch.Tensor, skip: torch.Tensor) -> None:
        lr, keep = self._lr * factor, 1 - skip
        for parameters, momenta in self._stacks:
            gradients = torch.stack([gradient_of(parameter) for parameter in parameters])
            gradients.nan_to_num_(0.0, 0.0, 0.0)  # what is not finite is skipped, but zero times it would not be zero
            momenta.lerp_(gradients, (1 - self._momentum) * keep)
            ahead = gradients.lerp_(momenta, self._momentum)  # Nesterov's look ahead
            rows, columns = parameters[0].shape
            updates = orthogonalised(ahead, self._compute)
            updates *= -lr * math.sqrt(max(1.0, rows / columns)) * keep
            matrices: list[torch.Tensor] = list(parameters)
            torch._foreach_mul_(matrices, 1 - lr * self._weight_decay * keep)
            torch._foreach_add_(matrices, updates.unbind())

    def state(self) -> dict[str, torch.Tensor]:
        return dict(self._momenta)

    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        for name, momentum in self._momenta.items():
            fill(momentum, saved.pop(name))

    @staticmethod
    def remembered(shapes: Sequence[torch.Size]) -> Memory:
        numbers = sum(each.numel() for each in shapes)
        return "momentum of Muon, fp32", f"{numbers:,} x 4", 4 * numbers

    @staticmethod
    def workspace(shapes: Sequence[torch.Size], compute: torch.dtype) -> list[Memory]:
        """Matrices of one shape are made orthogonal together: their gradients and the look ahead in fp32, two
        generations of the iterate, its square, and what is left of the stack before."""
        stacks = Counter(shapes)
        parts, before = [], 0
        for (rows, columns), matrices in stacks.items():
            numbers, square = matrices * rows * columns, matrices * min(rows, columns) ** 2
            # In fp32 the iterate needs no copy in another type, but every generation of it is twice as large.
            each, squares = (14, 2) if compute != torch.float32 else (16, 8)
            squares = 12 if _is_oblong(min(rows, columns), max(rows, columns), compute) else squares
            sum_of = f"{numbers:,} x {each} + {square:,} x {squares}" + (f" + {before:,} x 4" if before else "")
            size = numbers * each + square * squares + before * 4
            parts.append((f"Muon's, of {matrices} {rows:,} x {columns:,}", sum_of, size))
            before = numbers
        return parts


def orthogonalised(matrices: torch.Tensor, compute: torch.dtype = torch.float32) -> torch.Tensor:
    """(n, rows, columns) to matrices with the same directions, their singular values near 1."""
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # as they come, fp16 may not hold them
    x = x.to(compute)
    turned = x.shape[-2] > x.shape[-1]
    x = x.mT if turned else x
    x = _on_gram_matrix(x) if _is_oblong(x.shape[-2], x.shape[-1], compute) else _on_matrix(x)
    return (x.mT if turned else x).to(matrices.dtype)


def _is_oblong(rows: int, columns: int, compute: torch.dtype) -> bool:
    """In bf16 and fp16 the Gram matrix loses too much of what is small."""
    return compute == torch.float32 and columns >= OBLONG * rows


def _on_matrix(x: torch.Tensor) -> torch.Tensor:
    for a, b, c in QUINTICS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _on_gram_matrix(x: torch.Tensor) -> torch.Tensor:
    """The same, for a long x: all steps are polynomials in its small Gram matrix, by which it is multiplied once."""
    gram = x @ x.mT
    product = polynomial = _polynomial(gram, *QUINTICS[0])
    for quintic in QUINTICS[1:]:
        gram = polynomial @ gram @ polynomial
        polynomial = _polynomial(gram, *quintic)
        product = polynomial @ product
    return product @ x


def _polynomial(gram: torch.Tensor, a: float, b: float, c: float) -> torch.Tensor:
    polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
    return polynomial

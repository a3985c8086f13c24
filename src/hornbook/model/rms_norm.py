"""x over the root of its mean square.

In and out: (..., width). On a CPU, torch goes over the memory many times for it: three times longer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    if torch.is_grad_enabled():
        normed: torch.Tensor = _RMSNormOnCPU.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return normed
    unit = x * _scale(x, eps)  # the same, for less: a small model that speaks does little else
    return unit if weight is None else unit * weight


def _scale(x: torch.Tensor, eps: float) -> torch.Tensor:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).float()
    return (length.square_() / x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)


class _RMSNormOnCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
        scale = _scale(x, eps)
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit if weight is None else unit * weight

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        unit, scale, weight = ctx.saved_tensors
        pull = upstream * unit
        # How far the gradient points along x, which the norm takes away.
        along = pull.sum(-1, keepdim=True) if weight is None else pull @ weight.unsqueeze(-1)
        gradient = upstream if weight is None else upstream * weight
        gradient = torch.addcmul(gradient, unit, along, value=-1 / unit.shape[-1])
        return gradient.mul_(scale), None if weight is None else pull.flatten(0, -2).sum(0), None

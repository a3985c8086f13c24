"""The small parts of a block.

In and out: (B, T, C).  A norm is one entry here and its name in ModelConfig.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hornbook.model.activations import ACTIVATIONS
from hornbook.model.config import ModelConfig


class LayerNorm(nn.Module):
    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(width)) if config.norm_weight else None
        self.bias = nn.Parameter(torch.zeros(width)) if "norm" in config.biases else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(width)) if config.norm_weight else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x over the root of its mean square. On a CPU, torch goes over the memory many times for it: three times
    longer."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        normed: torch.Tensor = _RMSNormOnCPU.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return normed
    return F.rms_norm(x, x.shape[-1:], weight, eps)


class _RMSNormOnCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).float()
        scale = (length.square_() / x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
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


NORMS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


class MLP(nn.Module):
    """Widen, activate, narrow. With a gate, widen twice, and let one half open and close the other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, bias = config.width_of_mlp, "mlp" in config.biases
        activation = ACTIVATIONS[config.activation]
        self.activation = activation.of(F)
        self.gate = nn.Linear(config.n_embd, width, bias=bias) if activation.gated else None
        self.up = nn.Linear(config.n_embd, width, bias=bias)
        self.down = nn.Linear(width, config.n_embd, bias=bias)
        self.dropout = nn.Dropout(config.drops("mlp"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        return self.down(self.dropout(wide))


def rows_of_pairs(ids: torch.Tensor, rows: int, before: torch.Tensor | None) -> torch.Tensor:
    """Each of ids (B, T) with the one before it, as a row of a table, (B, T). `before` is the one before the first,
    (B, 1), where there is one."""
    unknown = torch.full_like(ids[:, :1], -1)
    previous = torch.cat((unknown if before is None else before, ids[:, :-1]), dim=1)
    return ((previous + 1) * 36_313 + ids * 27_191) % rows

"""The small parts of a block.

In and out: (B, T, C).  A norm or an activation is one entry here and its name in ModelConfig.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hornbook.model.config import ModelConfig


class LayerNorm(nn.Module):
    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if config.bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x over the root of its mean square. On a CPU, torch goes over the memory many times for it: three times
    longer."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        normed: torch.Tensor = _RMSNormOnCPU.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return normed
    return F.rms_norm(x, x.shape[-1:], weight, eps)


class _RMSNormOnCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).float()
        scale = (length.square_() / x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        unit, scale, weight = ctx.saved_tensors
        pull = upstream * unit
        along = pull @ weight.unsqueeze(-1)  # how far the gradient points along x, which the norm takes away
        gradient = torch.addcmul(upstream * weight, unit, along, value=-1 / unit.shape[-1])
        return gradient.mul_(scale), pull.flatten(0, -2).sum(0), None


NORMS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


class PlainMLP(nn.Module):
    """Widen, bend, narrow."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.width_of_mlp, bias=config.bias)
        self.down = nn.Linear(config.width_of_mlp, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class GatedMLP(nn.Module):
    """Widen twice, let one half open and close the other, narrow."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.width_of_mlp, bias=config.bias)
        self.up = nn.Linear(config.n_embd, config.width_of_mlp, bias=config.bias)
        self.down = nn.Linear(config.width_of_mlp, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


MLPS: dict[str, Callable[[ModelConfig], nn.Module]] = {"gelu_tanh": PlainMLP, "swiglu": GatedMLP}

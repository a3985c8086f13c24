"""The small parts of a block.

In and out: (B, T, C).  A norm or an activation is one entry here and its name in ModelConfig.
"""

from __future__ import annotations

from collections.abc import Callable

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
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


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

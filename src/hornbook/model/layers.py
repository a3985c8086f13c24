"""The small parts of a block.

In and out: (B, T, C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hornbook.model.activations import ACTIVATIONS
from hornbook.model.config import ModelConfig
from hornbook.model.norms import NORMS


class Norm(nn.Module):
    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.normalise, self.eps = NORMS[config.norm].of(F), config.norm_eps
        self.weight = nn.Parameter(torch.ones(width)) if config.norm_weight else None
        self.bias = nn.Parameter(torch.zeros(width)) if "norm" in config.biases else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normalise(x, self.weight, self.bias, self.eps)


class MLP(nn.Module):
    """Widen, activate, narrow. With a gate, widen twice, and let one half open and close the other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, bias = config.width_of_mlp, "mlp" in config.biases
        activation = ACTIVATIONS[config.activation]
        self.activation, self.gated = activation.of(F), activation.gated
        self.gate = nn.Linear(config.n_embd, width, bias=bias) if self.gated else None
        self.up = nn.Linear(config.n_embd, width, bias=bias)
        self.down = nn.Linear(width, config.n_embd, bias=bias)
        self.dropout = nn.Dropout(config.drops("mlp"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gated:
            gate, up = self.widen(x)
            wide = self.activation(gate) * up
        else:
            wide = self.activation(self.up(x))
        return self.down(self.dropout(wide))

    def widen(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gate and up, each (B, T, width); a model that only speaks does it at once (infer/quantize.py)."""
        assert self.gate is not None
        return self.gate(x), self.up(x)


def id_before(ids: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
    """Of each of ids (B, T), the one before it, with `first` (B, 1) before the first; -1 where there is none."""
    unknown = torch.full_like(ids[:, :1], -1)
    return torch.cat((unknown if first is None else first, ids[:, :-1]), dim=1)

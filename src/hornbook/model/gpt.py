"""The transformer.

In: ids (B, T).  Out: hidden states (B, T, C), or logits (B, T, V).
B sequences, T tokens, C = n_embd, V = vocab_size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from hornbook.model.attention import Attention, KVCache, Rotary
from hornbook.model.config import ModelConfig
from hornbook.model.layers import MLPS, NORMS


class Block(nn.Module):
    """The stream passes through unchanged; attention and MLP each read it and add to it.

    x ──┬── norm ── attention ──(+)──┬── norm ── MLP ──(+)──
        └────────────────────────┘   └──────────────────┘
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = NORMS[config.norm](config, config.n_embd)
        self.attention = Attention(config, layer)
        self.mlp_norm = NORMS[config.norm](config, config.n_embd)
        self.mlp = MLPS[config.activation](config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, rotary: Rotary | None, cache: KVCache | None = None) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.known_vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.context, config.n_embd) if config.positions == "learned" else None
        self.rotary = Rotary(config) if config.positions == "rotary" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = NORMS[config.norm](config, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.known_vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight
        INITS[config.init](self)

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Ids (B, T) to hidden states (B, T, C), ready for the head."""
        x = self.embedding(ids)
        if self.positions is not None:
            start = cache.length if cache is not None else 0
            x = x + self.positions(torch.arange(start, start + ids.shape[1], device=ids.device))
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, self.rotary, cache)
        if cache is not None:
            cache.length += ids.shape[1]
        hidden: torch.Tensor = self.norm(x)
        return hidden

    def logits(self, ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Ids (B, T) to logits (B, T, V)."""
        return F.linear(self(ids, cache), self.head.weight)


def init_gpt2(model: GPT) -> None:
    """N(0, 0.02) everywhere; what writes to the stream is divided by the root of how often it is written to."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            writes = name.endswith(("attention.out.weight", "mlp.down.weight"))
            std = 0.02 / math.sqrt(2 * model.config.n_layer) if writes else 0.02
            nn.init.normal_(parameter, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def init_modern(model: GPT) -> None:
    """Matrices uniform by fan-in, what writes to the stream zero, so that each block begins as the identity."""
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            nn.init.zeros_(parameter)
        elif name == "head.weight":
            nn.init.normal_(parameter, std=0.001)
        elif name in ("embedding.weight", "positions.weight"):
            nn.init.normal_(parameter, std=0.02 if model.config.tied else 1.0)
        elif parameter.ndim == 2:
            bound = math.sqrt(3 / model.config.n_embd)
            nn.init.uniform_(parameter, -bound, bound)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


INITS = {"gpt2": init_gpt2, "modern": init_modern}

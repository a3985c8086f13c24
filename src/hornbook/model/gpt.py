"""The transformer.

In: ids (B, T).  Out: hidden states (B, T, C), or logits (B, T, V).
B sequences, T tokens, C = n_embd, V = vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hornbook.model.attention import Attention, KVCache, Rotary
from hornbook.model.config import ModelConfig
from hornbook.model.layers import MLP, NORMS, rows_of_pairs
from hornbook.model.loss import capped, cross_entropy_sum, token_losses


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
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.drops("residual"))
        self.shares = nn.Parameter(torch.tensor([1.0, 0.0])) if config.embedding_skip else None

    def forward(
        self,
        x: torch.Tensor,
        first: torch.Tensor,
        value_embedding: torch.Tensor | None,
        rotary: Rotary | None,
        cache: KVCache | None,
    ) -> torch.Tensor:
        if self.shares is not None:
            x = self.shares[0] * x + self.shares[1] * first
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, cache, value_embedding))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        vocab_size, width = config.known_vocab_size, config.n_embd
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(config.context, width) if config.positions == "learned" else None
        self.rotary = Rotary(config) if config.positions == "rotary" else None
        self.bigrams = nn.Embedding(config.bigram_embeddings, width) if config.bigram_embeddings else None
        self.values = nn.ModuleDict(
            {
                str(layer): nn.Embedding(vocab_size, config.kv_heads * config.width_of_head)
                for layer in range(config.n_layer)
                if config.has_value_embedding(layer)
            }
        )
        self.embedding_norm = NORMS[config.norm](config, width) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.drops("embedding"))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = NORMS[config.norm](config, width)
        self.cache_dtype: torch.dtype | None = None  # of keys and values, where not the model's own
        self.head = nn.Linear(width, vocab_size, bias="head" in config.biases)
        if config.tied:
            self.head.weight = self.embedding.weight
        INITS[config.init](self)

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Ids (B, T) to hidden states (B, T, C), ready for the head."""
        if cache is not None:
            cache.begin(ids.shape[1])
        x = first = self.embedded(ids, cache)
        for layer, block in enumerate(self.blocks):
            value_embedding = self.values[str(layer)](ids) if str(layer) in self.values else None
            x = block(x, first, value_embedding, self.rotary, cache)
        if cache is not None:
            cache.advance(ids)
        hidden: torch.Tensor = self.norm(x)
        return hidden

    def embedded(self, ids: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
        """Ids (B, T) to what enters the first block, (B, T, C)."""
        x = self.embedding(ids)
        if self.positions is not None:
            start = cache.start if cache is not None else 0
            rows = start if isinstance(start, int) else start[:, None]
            x = x + self.positions(rows + torch.arange(ids.shape[1], device=ids.device))
        if self.bigrams is not None:
            before = cache.last_ids if cache is not None else None
            x = x + self.bigrams(rows_of_pairs(ids, self.bigrams.num_embeddings, before))
        embedded: torch.Tensor = self.dropout(self.embedding_norm(x))
        return embedded

    def logits(self, ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Ids (B, T) to logits (B, T, V)."""
        return self.read_off(self(ids, cache))

    def read_off(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., C) to logits (..., V)."""
        return capped(self.head(hidden), self.config.logit_cap)

    def loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The summed loss of hidden states (..., C) that should have led to targets (...)."""
        return cross_entropy_sum(hidden, self.head.weight, targets, self.head.bias, self.config.logit_cap)

    def losses(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each token, (B, T), without gradients."""
        return token_losses(self(ids), self.read_off, self.config.known_vocab_size, targets)


def init_torch(model: GPT) -> None:
    """As torch's layers begin by themselves: embeddings N(0, 1), matrices and biases uniform by fan-in."""


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
        elif name == "bigrams.weight":
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            bound = math.sqrt(3 / model.config.n_embd)
            nn.init.uniform_(parameter, -bound, bound)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


class _NothingDrawn(TorchFunctionMode):
    """On the meta device there is nothing to fill in; torch takes two seconds to learn how not to."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        return (args[0] if args else named["tensor"]) if func in DRAWS else func(*args, **named)


def outline(config: ModelConfig) -> GPT:
    """A model without its numbers, on the meta device, where billions of parameters take no memory."""
    with torch.device("meta"), _NothingDrawn():
        return GPT(config)


INITS = {"torch": init_torch, "gpt2": init_gpt2, "modern": init_modern}

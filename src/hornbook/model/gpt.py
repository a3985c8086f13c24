"""The transformer.

In: ids (B, T), and the ids that should follow each.  Out: their loss; or hidden states (B, T, C), or logits (B, T, V).
B sequences, T tokens, C = n_embd, V = vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hornbook.model.attention import Attention, Cache
from hornbook.model.config import ModelConfig
from hornbook.model.layers import MLP, Norm, id_before
from hornbook.model.loss import capped, cross_entropy_sum, token_losses
from hornbook.model.positions import POSITIONS


class Block(nn.Module):
    """The stream passes through unchanged; attention and MLP each read it and add to it.

    x ──┬── norm ── attention ──(+)──┬── norm ── MLP ──(+)──
        └────────────────────────┘   └──────────────────┘
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config, config.n_embd)
        self.attention = Attention(config, layer)
        self.mlp_norm = Norm(config, config.n_embd)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.drops("residual"))
        self.shares = nn.Parameter(torch.tensor([1.0, 0.0])) if config.embedding_skip else None

    def forward(
        self,
        x: torch.Tensor,
        x0: torch.Tensor,
        value_embedding: torch.Tensor | None,
        rotate: Callable[[torch.Tensor], torch.Tensor] | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        if self.shares is not None:
            x = self.shares[0] * x + self.shares[1] * x0
        x = x + self.dropout(self.attention(self.attention_norm(x), rotate, cache, value_embedding))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        vocab_size, width = config.known_vocab_size, config.n_embd
        self.embedding = nn.Embedding(vocab_size, width)
        positions = POSITIONS[config.positions]
        self.positions = positions.added(config) if positions.added is not None else None
        self.rotation = positions.rotation(config) if positions.rotation is not None else None
        self.bigrams = nn.Embedding(config.bigram_embeddings, width) if config.bigram_embeddings else None
        self.values = nn.ModuleDict(
            {
                str(layer): nn.Embedding(vocab_size, config.kv_heads * config.width_of_head)
                for layer in range(config.n_layer)
                if config.has_value_embedding(layer)
            }
        )
        self.embedding_norm = Norm(config, width) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.drops("embedding"))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.checkpoints_activations = False
        self.norm = Norm(config, width)
        self.head = nn.Linear(width, vocab_size, bias="head" in config.biases)
        if config.tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The summed loss of ids (B, T) that should lead to targets (B, T)."""
        return self.loss(self.hidden(ids), targets)

    def hidden(self, ids: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Ids (B, T) to hidden states (B, T, C), ready for the head. Training may put a compiled one in its place."""
        if cache is not None:
            cache.begin(ids)
        positions = torch.arange(ids.shape[1], device=ids.device) if cache is None else cache.positions
        x = x0 = self.embed(ids, positions, cache)
        rotate = self.rotation(positions, x) if self.rotation is not None else None
        for layer, block in enumerate(self.blocks):
            value_embedding = self.values[str(layer)](ids) if str(layer) in self.values else None
            x = self.checkpointed(block)(x, x0, value_embedding, rotate, cache)
        if cache is not None:
            cache.advance(ids)
        hidden: torch.Tensor = self.norm(x)
        return hidden

    def checkpointed(self, block: nn.Module) -> Callable[..., torch.Tensor]:
        """With activation checkpointing, a block that keeps only its input and is computed again in the backward pass,
        with the same dropout; else the block."""
        if not (self.checkpoints_activations and torch.is_grad_enabled()):
            return block
        return partial(checkpoint, block, use_reentrant=False, preserve_rng_state=self.config.dropout > 0)

    def embed(self, ids: torch.Tensor, positions: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        """Ids (B, T) to what enters the first block, (B, T, C)."""
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions(positions)
        if self.bigrams is not None:
            previous = id_before(ids) if cache is None else cache.previous(ids)
            hashes = (previous + 1) * 36_313 + ids * 27_191  # two primes, which spread pairs over the rows
            x = x + self.bigrams(hashes % self.bigrams.num_embeddings)
        embedded: torch.Tensor = self.dropout(self.embedding_norm(x))
        return embedded

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (B, T) to logits (B, T, V)."""
        return self.logits_of(self.hidden(ids))

    def logits_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., C) to logits (..., V)."""
        return capped(self.head(hidden), self.config.logit_cap)

    def loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The summed loss of hidden states (..., C) that should have led to targets (...)."""
        return cross_entropy_sum(hidden, self.head.weight, targets, self.head.bias, self.config.logit_cap)

    def losses(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each token, (B, T), without gradients."""
        return token_losses(self.hidden(ids), self.logits_of, self.config.known_vocab_size, targets)

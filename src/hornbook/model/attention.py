"""Tokens look at the tokens before them.

In and out: (B, T, C).  Shapes on the way: B sequences, T tokens, H heads of width D, K heads of keys and values.
With a cache, the T tokens are the newest of a longer sequence whose keys and values the cache holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from hornbook.model.config import ModelConfig
from hornbook.model.layers import Norm

# On a CPU in bf16, up to so many tokens, the plain formula is two to three times as fast backwards as torch's kernel.
SHORT = 256


class Cache(Protocol):
    """What stands before the newest tokens, and where these stand (infer/decode.py)."""

    positions: torch.Tensor  # of the newest, (T,) or (B, T)
    mask: torch.Tensor | None  # what they may look at, (B, 1, T, S), where it is not all up to themselves

    def begin(self, ids: torch.Tensor) -> None: ...

    def previous(self, ids: torch.Tensor) -> torch.Tensor: ...

    def extend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...

    def advance(self, ids: torch.Tensor) -> None: ...


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_width = config.n_head, config.kv_heads, config.width_of_head
        self.dropout, self.scale = config.drops("attention"), config.scale_of_attention
        bias, heads = "qkv" in config.biases, self.n_head * self.head_width
        self.query = nn.Linear(config.n_embd, heads, bias=bias)
        self.key = nn.Linear(config.n_embd, self.n_kv_head * self.head_width, bias=bias)
        self.value = nn.Linear(config.n_embd, self.n_kv_head * self.head_width, bias=bias)
        self.out = nn.Linear(heads, config.n_embd, bias="out" in config.biases) if config.out_projection else None
        self.norms_come_first = config.qk_norm == "before"
        self.query_norm = Norm(config, self.head_width) if config.qk_norm != "none" else nn.Identity()
        self.key_norm = Norm(config, self.head_width) if config.qk_norm != "none" else nn.Identity()
        self.value_share = nn.Parameter(torch.ones(1)) if config.has_value_embedding(layer) else None

    def forward(
        self,
        x: torch.Tensor,
        rotate: Callable[[torch.Tensor], torch.Tensor] | None,
        cache: Cache | None,
        value_embedding: torch.Tensor | None = None,  # (B, T, K x D)
    ) -> torch.Tensor:
        B, T, _ = x.shape
        q, k, v = self.project(x)
        q, k = q.view(B, T, self.n_head, self.head_width), k.view(B, T, self.n_kv_head, self.head_width)
        if self.value_share is not None and value_embedding is not None:
            v = v + self.value_share * value_embedding
        v = v.view(B, T, self.n_kv_head, self.head_width).transpose(1, 2)  # (B, K, T, D)
        if self.norms_come_first:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # (B, H, T, D) and (B, K, T, D)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        if not self.norms_come_first:
            q, k = self.query_norm(q), self.key_norm(k)
        if cache is not None:
            q, k, v = cache.extend(self.layer, q, k, v)
        mask = cache.mask if cache is not None else None
        y = attend(q, k, v, self.scale, dropout=self.dropout if self.training else 0.0, mask=mask)
        y = y.transpose(1, 2).reshape(B, T, -1).to(x.dtype)
        return y if self.out is None else self.out(y)  # (B, T, C)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, each (B, T, heads x D); a model that only speaks does it at once
        (infer/quantize.py)."""
        return self.query(x), self.key(x), self.value(x)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    dropout: float = 0.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of queries (B, H, T, D) to keys and values (B, K, S, D), S >= T: (B, H, T, D). Without a mask
    the queries are those of the last T positions."""
    T, S = q.shape[2], k.shape[2]
    shared = q.shape[1] != k.shape[1]
    if q.requires_grad and mask is None and T == S <= SHORT and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _attend_in_short_windows(q, k, v, scale, dropout)
    causal = mask is None and T == S
    if mask is None and 1 < T < S:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(diagonal=S - T)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, scale=scale, enable_gqa=shared
    )


def _attend_in_short_windows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    """The plain formula."""
    B, H, T, D = q.shape
    K = k.shape[1]
    later = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1).repeat(H // K, 1)
    scores = torch.baddbmm(later, q.reshape(B * K, H // K * T, D), k.reshape(B * K, T, D).mT, alpha=scale)
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return (weights @ v.reshape(B * K, T, D)).view(B, H, T, D)

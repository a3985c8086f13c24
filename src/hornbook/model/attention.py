"""Tokens look at the tokens before them.

In and out: (B, T, C).  Shapes on the way: B sequences, T tokens, H heads of width D, K heads of keys and values.
With a cache, the T tokens are the newest of a longer sequence whose keys and values the cache holds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hornbook.model.config import ModelConfig
from hornbook.model.layers import NORMS

SHORT = 256


class KVCache:
    """Keys and values of the tokens seen so far, for every layer: (B, K, context, D) each."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, batch, config.kv_heads, config.context, config.width_of_head)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the newest in place, and hand back all."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def reset(self) -> None:
        self.length = 0


class Rotary(nn.Module):
    """Turns each pair (i, i + D/2) of a head by an angle that grows with the token's place."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width_of_head
        rates = config.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)
        angles = torch.outer(torch.arange(config.context, dtype=torch.float32, device="cpu"), rates)
        self.register_buffer("cos", angles.cos(), persistent=False)  # (context, D/2)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: torch.Tensor, start: int) -> torch.Tensor:
        cos, sin = self.cos[start : start + x.shape[-2]], self.sin[start : start + x.shape[-2]]
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_width = config.n_head, config.kv_heads, config.width_of_head
        self.dropout = config.dropout
        self.query = nn.Linear(config.n_embd, self.n_head * self.head_width, bias=config.bias)
        self.key = nn.Linear(config.n_embd, self.n_kv_head * self.head_width, bias=config.bias)
        self.value = nn.Linear(config.n_embd, self.n_kv_head * self.head_width, bias=config.bias)
        self.out = nn.Linear(self.n_head * self.head_width, config.n_embd, bias=config.bias)
        self.query_norm = NORMS[config.norm](config, self.head_width) if config.qk_norm else nn.Identity()
        self.key_norm = NORMS[config.norm](config, self.head_width) if config.qk_norm else nn.Identity()

    def forward(self, x: torch.Tensor, rotary: Rotary | None, cache: KVCache | None) -> torch.Tensor:
        B, T, _ = x.shape
        start = cache.length if cache is not None else 0
        q = self.query_norm(self.query(x).view(B, T, self.n_head, self.head_width)).transpose(1, 2)  # (B, H, T, D)
        k = self.key_norm(self.key(x).view(B, T, self.n_kv_head, self.head_width)).transpose(1, 2)  # (B, K, T, D)
        v = self.value(x).view(B, T, self.n_kv_head, self.head_width).transpose(1, 2)
        if rotary is not None:
            q, k = rotary(q, start), rotary(k, start)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        y = attend(q, k, v, dropout=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
    """Queries (B, H, T, D) on keys and values (B, K, S, D), of which theirs are the last T: (B, H, T, D)."""
    T, S = q.shape[2], k.shape[2]
    shared = q.shape[1] != k.shape[1]
    if q.requires_grad and T == S <= SHORT and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _attend_in_short_windows(q, k, v, dropout)
    mask = _lower_right(T, S, q.device) if 1 < T < S else None
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=T == S, dropout_p=dropout, enable_gqa=shared
    )


def _attend_in_short_windows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
    """The plain formula. torch's fused kernel is slow backwards in bf16 on CPUs: two to three times up to SHORT
    tokens."""
    B, H, T, D = q.shape
    K = k.shape[1]
    later = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1).repeat(H // K, 1)
    scores = torch.baddbmm(later, q.reshape(B * K, H // K * T, D), k.reshape(B * K, T, D).mT, alpha=D**-0.5)
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return (weights @ v.reshape(B * K, T, D)).view(B, H, T, D)


def _lower_right(newest: int, seen: int, device: torch.device) -> torch.Tensor:
    """What each of the newest tokens may look at among all that are seen: (newest, seen)."""
    return torch.ones(newest, seen, dtype=torch.bool, device=device).tril(diagonal=seen - newest)

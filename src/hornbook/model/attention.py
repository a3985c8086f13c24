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
    """Keys and values of the tokens seen so far, for every layer: (B, K, context, D) each. A row is one sequence, and
    each has a length of its own; every row of a part gets the same number of new tokens at a time."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, batch, config.kv_heads, config.context, config.width_of_head)
        # Zeros: what a longer neighbour makes visible of a row gets no weight, but no weight times a NaN is a NaN.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.long, device="cpu")
        self.last_ids = torch.full((batch, 1), -1, device=device)  # where pairs of neighbours matter
        self.start: int | torch.Tensor = 0  # how many tokens rows hold: a number, or (B,) where they differ
        self.end = 0  # how many tokens the longest row holds with its newest
        self.mask: torch.Tensor | None = None  # (B, 1, T, S), and where the newest stand: where rows differ
        self.places: tuple[torch.Tensor, torch.Tensor]

    def part(self, first: int, last: int) -> KVCache:
        """The rows from `first` up to `last`: the same memory, so that what is done to them is done to the whole."""
        part = KVCache.__new__(KVCache)
        part.keys, part.values = self.keys[:, first:last], self.values[:, first:last]
        part.lengths, part.last_ids = self.lengths[first:last], self.last_ids[first:last]
        part.start, part.end, part.mask = 0, 0, None
        return part

    def begin(self, newest: int) -> None:
        """Before the first layer: where `newest` tokens for each row will stand, and what they may look at."""
        shortest, longest = int(self.lengths.min()), int(self.lengths.max())
        self.start, self.mask, self.end = shortest, None, longest + newest
        if shortest != longest:
            device = self.keys.device
            self.start = self.lengths.to(device)
            places = self.start[:, None] + torch.arange(newest, device=device)  # (B, T)
            later = torch.arange(self.end, device=device) > places[:, None, :, None]
            # Added to scores: torch would make this of a mask of booleans in every layer anew.
            self.mask = torch.zeros(later.shape, device=device, dtype=self.keys.dtype).masked_fill_(later, -torch.inf)
            self.places = (torch.arange(len(places), device=device)[:, None], places)

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the newest in place, and hand back all, in the cache's number type."""
        keys, values = keys.to(self.keys.dtype), values.to(self.values.dtype)
        if isinstance(self.start, int):
            self.keys[layer, :, :, self.start : self.end] = keys
            self.values[layer, :, :, self.start : self.end] = values
        else:
            self.keys[layer].transpose(1, 2)[self.places] = keys.transpose(1, 2)
            self.values[layer].transpose(1, 2)[self.places] = values.transpose(1, 2)
        return self.keys[layer, :, :, : self.end], self.values[layer, :, :, : self.end]

    def advance(self, ids: torch.Tensor) -> None:
        """After the last layer: ids (B, T) were seen."""
        self.lengths += ids.shape[1]
        self.last_ids[:] = ids[:, -1:]

    def shorten(self, row: int, by: int, last_id: int) -> None:
        """Take back the newest tokens of a row; `last_id` is the newest that stays."""
        self.lengths[row] -= by
        self.last_ids[row] = last_id

    def forget(self, row: int) -> None:
        self.lengths[row] = 0
        self.last_ids[row] = -1

    def copy_rows(self, sources: list[int], first: int = 0) -> None:
        """Rows from `first` on become copies of `sources`."""
        last, length = first + len(sources), int(self.lengths[sources].max())
        self.keys[:, first:last, :, :length] = self.keys[:, sources, :, :length]
        self.values[:, first:last, :, :length] = self.values[:, sources, :, :length]
        self.lengths[first:last] = self.lengths[sources]
        self.last_ids[first:last] = self.last_ids[sources]


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

    def forward(self, x: torch.Tensor, start: int | torch.Tensor) -> torch.Tensor:
        if isinstance(start, int):
            cos, sin = self.cos[start : start + x.shape[-2]], self.sin[start : start + x.shape[-2]]  # (T, D/2)
        else:
            places = start[:, None] + torch.arange(x.shape[-2], device=x.device)
            cos, sin = self.cos[places][:, None], self.sin[places][:, None]  # (B, 1, T, D/2)
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


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
        self.joined: nn.Module | None = None  # in place of the three, where a model only speaks (infer/quantize.py)
        self.norms_come_first = config.qk_norm == "before"
        self.query_norm = NORMS[config.norm](config, self.head_width) if config.qk_norm != "none" else nn.Identity()
        self.key_norm = NORMS[config.norm](config, self.head_width) if config.qk_norm != "none" else nn.Identity()
        self.value_share = nn.Parameter(torch.ones(1)) if config.has_value_embedding(layer) else None

    def forward(
        self,
        x: torch.Tensor,
        rotary: Rotary | None,
        cache: KVCache | None,
        value_embedding: torch.Tensor | None = None,  # (B, T, K x D)
    ) -> torch.Tensor:
        B, T, _ = x.shape
        start = cache.start if cache is not None else 0
        if self.joined is None:
            q, k, v = self.query(x), self.key(x), self.value(x)
        else:
            widths = [heads * self.head_width for heads in (self.n_head, self.n_kv_head, self.n_kv_head)]
            q, k, v = self.joined(x).split(widths, dim=-1)
        q, k = q.view(B, T, self.n_head, self.head_width), k.view(B, T, self.n_kv_head, self.head_width)
        if self.value_share is not None and value_embedding is not None:
            v = v + self.value_share * value_embedding
        v = v.view(B, T, self.n_kv_head, self.head_width).transpose(1, 2)  # (B, K, T, D)
        if self.norms_come_first:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # (B, H, T, D) and (B, K, T, D)
        if rotary is not None:
            q, k = rotary(q, start), rotary(k, start)
        if not self.norms_come_first:
            q, k = self.query_norm(q), self.key_norm(k)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
            q = q.to(k.dtype)
        mask = cache.mask if cache is not None else None
        y = attend(q, k, v, self.scale, dropout=self.dropout if self.training else 0.0, mask=mask)
        y = y.transpose(1, 2).reshape(B, T, -1).to(x.dtype)
        return y if self.out is None else self.out(y)  # (B, T, C)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    dropout: float = 0.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Queries (B, H, T, D) on keys and values (B, K, S, D), of which theirs are the last T where no mask says
    otherwise: (B, H, T, D)."""
    T, S = q.shape[2], k.shape[2]
    shared = q.shape[1] != k.shape[1]
    if q.requires_grad and T == S <= SHORT and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _attend_in_short_windows(q, k, v, scale, dropout)
    causal = mask is None and T == S
    if mask is None and 1 < T < S:
        mask = _lower_right(T, S, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, scale=scale, enable_gqa=shared
    )


def _attend_in_short_windows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    """The plain formula. torch's fused kernel is slow backwards in bf16 on CPUs: two to three times up to SHORT
    tokens."""
    B, H, T, D = q.shape
    K = k.shape[1]
    later = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1).repeat(H // K, 1)
    scores = torch.baddbmm(later, q.reshape(B * K, H // K * T, D), k.reshape(B * K, T, D).mT, alpha=scale)
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return (weights @ v.reshape(B * K, T, D)).view(B, H, T, D)


def _lower_right(newest: int, seen: int, device: torch.device) -> torch.Tensor:
    """What each of the newest tokens may look at among all that are seen: (newest, seen)."""
    return torch.ones(newest, seen, dtype=torch.bool, device=device).tril(diagonal=seen - newest)

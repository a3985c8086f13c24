"""Logits become a token.

In: logits (B, V), rules, a seed for each sequence, and the position.  Out: one id for each sequence, (B,).
The rules apply in this order: temperature, top-k, top-p, min-p. The noise is drawn from seed and position alone, so
that the same seed gives the same text however sequences were batched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hornbook.base.machine import mix_seed
from hornbook.infer.config import SamplerConfig


def next_tokens(logits: torch.Tensor, rules: SamplerConfig, seeds: Sequence[int], position: int) -> torch.Tensor:
    """(B, V) to (B,)."""
    logits = logits.float()
    if rules.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = allowed(logits, rules).softmax(dim=-1)
    noise = torch.stack([_exponential_noise(seed, position, logits.shape[-1]) for seed in seeds]).to(logits.device)
    # The largest of p / Exp(1) falls on each token with its probability.
    return (probabilities / noise).argmax(dim=-1)


def allowed(logits: torch.Tensor, rules: SamplerConfig) -> torch.Tensor:
    """Logits after temperature, with those of forbidden tokens at minus infinity."""
    logits = logits / rules.temperature
    if rules.top_k is not None and rules.top_k < logits.shape[-1]:
        least = logits.topk(rules.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if rules.top_p is not None and rules.top_p < 1:
        ordered, places = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered  # what the likelier ones have together
        logits = logits.masked_fill((before >= rules.top_p).gather(-1, places.argsort(dim=-1)), float("-inf"))
    if rules.min_p:
        probabilities = logits.softmax(dim=-1)
        least = rules.min_p * probabilities.amax(dim=-1, keepdim=True)
        logits = logits.masked_fill(probabilities < least, float("-inf"))
    return logits


def _exponential_noise(seed: int, position: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(mix_seed(seed, position))
    return torch.empty(size).exponential_(generator=generator)

"""Logits become a token.

In: logits (B, V), rules, a seed for each sequence, and the position.  Out: one id for each sequence, (B,).
The rules apply in this order: penalties, temperature, top-k, top-p, min-p. The noise is drawn from seed and position
alone, so that the same seed gives the same text however sequences were batched.
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
        forbidden = torch.empty_like(places, dtype=torch.bool).scatter_(-1, places, before >= rules.top_p)
        logits = logits.masked_fill(forbidden, float("-inf"))
    if rules.min_p:
        probabilities = logits.softmax(dim=-1)
        least = rules.min_p * probabilities.amax(dim=-1, keepdim=True)
        logits = logits.masked_fill(probabilities < least, float("-inf"))
    return logits


def penalized(logits: torch.Tensor, rules: SamplerConfig, tokens: Sequence[int], prompt_length: int) -> torch.Tensor:
    """Of one sequence, (V,): less, or more, for tokens that were there before. Those that the window has left behind
    count as well."""
    if rules.repetition_penalty != 1:
        seen = torch.tensor(_of_vocabulary(tokens, logits), device=logits.device, dtype=torch.long)
        held, penalty = logits[seen], rules.repetition_penalty
        logits = logits.index_copy(0, seen, torch.where(held < 0, held * penalty, held / penalty))
    if rules.presence_penalty and len(tokens) > prompt_length:
        said = torch.tensor(_of_vocabulary(tokens[prompt_length:], logits), device=logits.device)
        logits = logits.index_copy(0, said, logits[said] - rules.presence_penalty)
    return logits


def _of_vocabulary(tokens: Sequence[int], logits: torch.Tensor) -> list[int]:
    """Each once, and none that cannot be taken anyway."""
    return [token for token in sorted(set(tokens)) if token < len(logits)]


def _exponential_noise(seed: int, position: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(mix_seed(seed, position))
    return torch.empty(size).exponential_(generator=generator)

"""How well a model knows a text.

In: a model, and ids.  Out: loss, perplexity, and bits per byte of text, over all of it.
The text is cut into windows of the context, and every token but the very first is predicted once, from what stands
before it in its window. The result does not depend on how windows are batched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch

from hornbook.model.loss import token_losses
from hornbook.shards.format import TokenArray
from hornbook.shards.loader import Batch, split_windows

TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class Score:
    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def score(
    hidden_states: Callable[[torch.Tensor], torch.Tensor],
    head: torch.Tensor,
    tokens: TokenArray,
    context: int,
    text_bytes: int,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Score:
    """`hidden_states` maps ids (B, T) to (B, T, C); `head` is (V, C)."""
    nats, predicted = 0.0, 0
    with torch.inference_mode():
        for ids, targets in _windows(tokens, context, max(tokens_at_once // context, 1), head.device):
            nats += token_losses(hidden_states(ids), head, targets).double().sum().item()
            predicted += targets.numel()
    loss = nats / max(predicted, 1)
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return Score(loss, perplexity, nats / math.log(2) / max(text_bytes, 1), predicted)


def _windows(tokens: TokenArray, context: int, rows: int, device: torch.device) -> Iterator[Batch]:
    whole = (len(tokens) - 1) // context
    for first in range(0, whole, rows):
        starts = np.arange(first, min(first + rows, whole), dtype=np.int64) * context
        yield split_windows(torch.from_numpy(tokens.windows(starts, context + 1)), device)
    rest = len(tokens) - 1 - whole * context
    if rest > 0:
        yield split_windows(torch.from_numpy(tokens.read(whole * context, rest + 1))[None], device)

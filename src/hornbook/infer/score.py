"""How well a model knows a text.

In: a model, and ids.  Out: loss, perplexity, and bits per byte of text, over all of it.
The text is cut into windows of the context, and every token but the very first is predicted once, from what stands
before it in its window. The result does not depend on how windows are batched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hornbook.base.machine import free_cache, is_out_of_memory
from hornbook.base.world import World
from hornbook.model.gpt import GPT
from hornbook.shards.format import TokenArray
from hornbook.shards.order import split_windows

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
    model: GPT,
    tokens: TokenArray,
    context: int,
    text_bytes: int,
    windows_at_most: int | None = None,
    world: World | None = None,
    in_step: bool = False,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Score:
    """The score of all of a text; or of so many whole windows, spread evenly over it. Several processes take turns, and
    come to the same number as one; `in_step` where none can compute without the others, who then compute with it."""
    world = world or World()
    rounds: list[float] = []
    predicted, ahead = 0, 0
    with torch.no_grad() if in_step else torch.inference_mode():
        for turn, windows in enumerate(_windows(tokens, context, windows_at_most, max(tokens_at_once // context, 1))):
            is_mine = turn % world.size == world.rank
            rounds.append(_nats(model, windows, not in_step) if is_mine else 0.0)
            predicted += windows[:, 1:].size
            ahead = turn % world.size + 1
        if in_step and world.rank >= ahead > 0:
            _nats(model, windows, may_halve=False)
    of_all = world.gathered(torch.tensor(rounds, dtype=torch.float64))
    nats = sum(of_all[turn % world.size, turn].item() for turn in range(len(rounds)))
    loss = nats / max(predicted, 1)
    perplexity = math.exp(loss) if loss < 700 else math.inf
    bits = loss / math.log(2) * (len(tokens) - 1)
    return Score(loss, perplexity, bits / max(text_bytes, 1), predicted)


def _nats(model: GPT, windows: NDArray[np.int64], may_halve: bool) -> float:
    """The summed loss of windows; half of them at a time where memory runs out, as beside a run that fills it, and
    nobody waits for the other half."""
    device = model.embedding.weight.device
    try:
        ids, targets = split_windows(torch.from_numpy(windows), device)
        return model.losses(ids, targets).double().sum().item()
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(windows) == 1 or not may_halve:
            raise
    free_cache(device)
    return sum(_nats(model, half, may_halve) for half in np.array_split(windows, 2))


def _windows(tokens: TokenArray, context: int, at_most: int | None, rows: int) -> Iterator[NDArray[np.int64]]:
    """The text as windows of context + 1 ids, (rows, context + 1) at a time; what is left at the end comes last, unless
    so many windows are asked for."""
    whole = (len(tokens) - 1) // context
    count = min(at_most or whole, whole)
    numbers = np.arange(count, dtype=np.int64) * whole // max(count, 1)
    for first in range(0, len(numbers), rows):
        yield tokens.windows(numbers[first : first + rows] * context, context + 1)
    rest = len(tokens) - 1 - whole * context
    if rest > 0 and (at_most is None or not whole):
        yield tokens.read(whole * context, rest + 1)[None]

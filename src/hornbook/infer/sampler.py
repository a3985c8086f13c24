"""Logits become a token.

In: logits (B, V), and for each row its rules, a seed, and the position of the token.  Out: an id for each row.
The rules apply in this order: penalties, temperature, top-k, top-p, min-p. Then the tokens that are left race: each
arrives after a time drawn from seed, position and token alone, divided by its probability, and the first one is taken.
So the same seed gives the same text however sequences were batched: another batch size moves the last digits of a
probability, and these matter only where two tokens arrive all but together. (One number that points into the
probabilities laid end to end would do, were it not that a last digit then moves all tokens that come after it.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hornbook.base.errors import UserError
from hornbook.base.machine import mix_seed
from hornbook.infer.config import SamplerConfig

# A rule that leaves tokens out: a knob of infer/config.py, and here, of what the rules before it left (V,), which stay.
# The likeliest always does.
FILTERS: dict[str, Callable[[NDArray[np.float32], Any], NDArray[np.bool_]]] = {
    "min_p": lambda likely, share: likely >= np.float32(share) * likely.max(),
}
ROUNDING = 1e-3
BLOCK = 256


def next_tokens(
    logits: torch.Tensor, rules: Sequence[SamplerConfig], seeds: Sequence[int], positions: Sequence[int]
) -> list[int]:
    """(B, V) to B ids."""
    logits = logits.float()
    tokens = [0] * len(rules)
    for row in [row for row, each in enumerate(rules) if each.temperature == 0]:
        tokens[row] = int(logits[row].cpu().numpy().argmax())  # ten times faster than torch's
    drawn = [row for row, each in enumerate(rules) if each.temperature > 0]
    if drawn:
        temperatures = torch.tensor([[rules[row].temperature] for row in drawn], device=logits.device)
        warm = logits / temperatures if len(drawn) == len(rules) else logits[drawn] / temperatures
        for row, likely in zip(drawn, warm.softmax(dim=-1).cpu().numpy(), strict=True):
            if np.isnan(likely[0]):
                raise UserError("the model's logits are not finite numbers: its weights are damaged")
            tokens[row] = first_to_arrive(likely, rules[row], mix_seed(seeds[row], positions[row]))
    return tokens


def first_to_arrive(probabilities: NDArray[np.float32], rules: SamplerConfig, seed: int) -> int:
    """Of one sequence, (V,). Blocks of tokens race first, and then the tokens of the winner, so that a vocabulary of
    50,000 takes a few hundred draws."""
    ids = allowed(probabilities, rules)
    if ids is not None:
        likely = np.zeros_like(probabilities)
        likely[ids] = probabilities[ids]
        probabilities = likely
    blocks = np.add.reduceat(probabilities, np.arange(0, len(probabilities), BLOCK), dtype=np.float64)
    block = int((blocks / times(seed, 0, len(blocks))).argmax())
    first = block * BLOCK
    tokens = probabilities[first : first + BLOCK]
    return first + int((tokens / times(seed, 1 + block, len(tokens))).argmax())


def times(seed: int, race: int, runners: int) -> NDArray[np.float64]:
    """Exponentially distributed, by SplitMix64 of seed, race and runner."""
    mixed = np.arange(1, runners + 1, dtype=np.uint64) + np.uint64(race << 32)
    mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return -np.log(((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53)


def allowed(probabilities: NDArray[np.float32], rules: SamplerConfig) -> NDArray[np.intp] | None:
    """The ids that may be taken, ascending; None: all. Most of a vocabulary is out of the question at a glance, so that
    only the rest is sorted. Of equally likely tokens at the edge, top-k takes all, top-p those of the lowest ids."""
    size = len(probabilities)
    asked = {name: keeps for name, keeps in FILTERS.items() if getattr(rules, name) is not None}
    top_k = rules.top_k if rules.top_k is not None and rules.top_k < size else None
    top_p = rules.top_p if rules.top_p is not None and rules.top_p < 1 else None
    if top_k is None and top_p is None and not asked:
        return None
    least = np.float32(0)
    if top_k is not None:
        least = np.partition(probabilities, size - top_k)[size - top_k]
    elif top_p is not None:  # tokens below this have less together than top-p leaves out
        least = np.float32((1 - top_p) / size * (1 - ROUNDING))
    ids = np.flatnonzero(probabilities >= least)
    if top_p is not None:
        ids = likeliest_together(
            ids, probabilities[ids], top_p * (probabilities[ids] if top_k else probabilities).sum()
        )
    for name, keeps in asked.items():
        ids = ids[keeps(probabilities[ids], getattr(rules, name))]
    return ids


def likeliest_together(ids: NDArray[np.intp], likely: NDArray[np.float32], wanted: np.float32) -> NDArray[np.intp]:
    """Of ids, ascending, the fewest that have so much together. To sort tens of thousands would cost more than the
    model's step: floats above zero are ordered as their bits are, so the first bits put them into bins, and only the
    bin in which the edge falls is sorted."""
    bins = likely.view(np.int32) >> 19
    bins -= bins.min()
    sums = np.bincount(bins, likely)
    before_bin = np.cumsum(sums[::-1])[::-1] - sums  # what the likelier ones have together
    edge = int((before_bin < wanted).argmax())
    last = np.flatnonzero(bins == edge)
    last = last[np.argsort(-likely[last], kind="stable")]
    before = before_bin[edge] + np.cumsum(likely[last], dtype=np.float64) - likely[last]
    kept = bins > edge
    kept[last[before < wanted]] = True
    return ids[kept]


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

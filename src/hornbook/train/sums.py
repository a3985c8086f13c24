"""Sums that come out the same however many processes have a part in them.

In: what the micro-batches of a step give: gradients, a loss.  Out: their sum, to the last bit the same whether one
process computes all of them or 2, 4 or 8 a share each.
Floating-point sums depend on their order, so the order is fixed: neighbours are added in pairs, their sums in pairs
again. A process has a whole branch of that tree, adds it up by itself, and what remains is added up by the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

Tensors = list[torch.Tensor]


class PairwiseSum:
    """Of lists of tensors that come one after another, each standing for a pair of micro-batches. It keeps as many of
    them as there are powers of two in what came so far; `in_turn`, one, to which each is added."""

    def __init__(self, in_turn: bool = False) -> None:
        self._in_turn = in_turn
        self._branches: list[tuple[int, Tensors]] = []  # how often paired, and their sum

    @torch.no_grad()
    def add(self, terms: Tensors) -> None:
        times = 0
        while self._branches and (self._branches[-1][0] == times or self._in_turn):
            terms = _added(self._branches.pop()[1], terms)
            times += 1
        self._branches.append((times, terms))

    @torch.no_grad()
    def total(self) -> Tensors:
        """All of it; nothing where nothing came."""
        if not self._branches:
            return []
        _, total = self._branches.pop()
        while self._branches:
            total = _added(self._branches.pop()[1], total)
        return total


def _added(earlier: Tensors, later: Tensors) -> Tensors:
    torch._foreach_add_(earlier, later)
    return earlier


def in_pairs(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of one term of each rank, neighbours first."""
    while len(terms) > 1:
        pairs = [terms[place : place + 2] for place in range(0, len(terms), 2)]
        terms = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
    return terms[0]


def is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def shares(terms: int, ranks: int) -> list[range]:
    """Which terms each rank adds up: whole branches of the tree, so that late ranks may have none; where the ranks are
    no power of two, as many as any other."""
    if is_power_of_two(ranks):
        leaves = ranks
        while leaves < terms:
            leaves *= 2
        each = leaves // ranks
        bounds = [min(rank * each, terms) for rank in range(ranks + 1)]
    else:
        bounds = [rank * terms // ranks for rank in range(ranks + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]

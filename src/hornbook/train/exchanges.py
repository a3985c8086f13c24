"""What ranks exchange in a step, so that one of them may fall out of it and hold nobody up.

In: exchanges, one after another, the same in each step.  Out: the same; or, of a rank whose memory ran out, all those
that are left of the step with nothing in them, so that the others come to its end and hear what happened.
Which exchanges a step has is known from a rehearsal, in which each rank computes by itself, with all the memory that it
will need: what is not there is missed before anybody waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from hornbook.base.world import Ranks, World
from hornbook.train.sums import in_pairs

# Takes part in an exchange, with nothing.
Attend = Callable[[], object]


class Exchanges:
    def __init__(self) -> None:
        self.is_as_rehearsed = True  # so far: or there is no way to attend
        self._left: list[Attend] | None = None  # of this step, the next one last
        self._rehearsed: list[Attend] | None = None

    def rehearsed(self, act: Callable[[], object]) -> list[Attend]:
        """Act without the others; what would have been exchanged with them."""
        self._rehearsed = []
        try:
            act()
            return self._rehearsed
        finally:
            self._rehearsed = None

    def begin(self, step: Sequence[Attend]) -> None:
        self._left = list(step)[::-1]

    def end(self) -> None:
        self.is_as_rehearsed &= not self._left
        self._left = None

    def attend_to_the_end(self) -> None:
        left, self._left = self._left or [], None
        while left:
            left.pop()()

    def gather(self, world: World, whole: torch.Tensor, mine: torch.Tensor) -> None:
        """Fill a row of which `mine` is the own part, in its place."""
        if not isinstance(world, Ranks):
            return
        if self._rehearsed is None:
            world.gather_into(whole, mine)
            self._happened()
            return
        for rank, part in enumerate(whole.view(world.size, -1)):
            if rank != world.rank:
                part.copy_(mine)
        self._rehearsed.append(partial(_attend_gather, world, len(whole), whole.dtype, whole.device))

    def exchange(self, world: World, parts: list[torch.Tensor] | torch.Tensor, expected: list[int]) -> torch.Tensor:
        """One part to each; what all sent to this one, in the order of their ranks."""
        if not isinstance(world, Ranks):
            return parts[0]
        if self._rehearsed is None:
            heard = world.exchanged(parts, expected)
            self._happened()
            return heard
        sent = parts if isinstance(parts, torch.Tensor) else torch.cat(parts)
        lengths = [len(part) for part in parts]
        self._rehearsed.append(partial(_attend_exchange, world, lengths, expected, sent.new_empty(0)))
        return sent.new_zeros(sum(expected))

    def _happened(self) -> None:
        if self._left is not None:
            self.is_as_rehearsed &= bool(self._left)
            del self._left[-1:]


def _attend_gather(world: Ranks, numbers: int, dtype: torch.dtype, device: torch.device) -> None:
    whole = torch.zeros(numbers, dtype=dtype, device=device)
    world.gather_into(whole, whole.view(world.size, -1)[world.rank])


def _attend_exchange(world: Ranks, lengths: list[int], expected: list[int], like: torch.Tensor) -> None:
    world.exchanged([like.new_zeros(length) for length in lengths], expected)


class Gather:
    """In the place of FSDP2's all-gather."""

    def __init__(self, exchanges: Exchanges, world: World) -> None:
        self._exchanges, self._world = exchanges, world

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False
    ) -> None:
        self._exchanges.gather(self._world, output_tensor, input_tensor)


class SumInPairs(Gather):
    """In the place of FSDP2's reduce-scatter, whose order of sums follows from the number of ranks. Of the first
    `count` ranks: what the others have counts for nothing."""

    count = 0

    def __call__(  # type: ignore[override]
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        ranks = self._world.size
        heard = self._exchanges.exchange(self._world, input_tensor.view(ranks, -1), [len(output_tensor)] * ranks)
        output_tensor.copy_(in_pairs(list(heard.view(ranks, -1)[: self.count])))

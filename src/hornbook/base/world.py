"""The processes that train one model together.

In: what each of them knows.  Out: what all of them agree on. There is the world of one process alone so far, in which
everybody agrees; what several would have to agree on (losses, whether to skip or to stop, what time it is) goes through
here already, and what only one of them may do (write, print) asks here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class World:
    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, number: torch.Tensor) -> torch.Tensor:
        """Over all processes, on the device."""
        return number

    def any(self, said: bool) -> bool:
        """Whether one of them says so."""
        return said

    def from_first(self, value: T) -> T:
        """What the first of them has: its clock, its disk."""
        return value

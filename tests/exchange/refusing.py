"""What it means that a bad file is refused: one line that names it, soon, with nothing run, written or taken."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hornbook.base.errors import LONGEST_LINE, UserError
from yardstick import within

MEGABYTE = 1 << 20


def refused(act: Callable[[], object], path: Path) -> str:
    """The line with which `act` refuses the file at `path`."""
    before, memory = listing(path.parent), most_memory()
    with within(2), pytest.raises(UserError) as caught:
        act()
    assert most_memory() - memory < 200 * MEGABYTE
    assert listing(path.parent) == before
    (line,) = caught.value.mistakes
    assert len(line) <= LONGEST_LINE
    assert path.name in line
    return line


def listing(folder: Path) -> dict[Path, int]:
    return {each: each.stat().st_size for each in folder.rglob("*")}


def most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def flips(data: bytes, how_many: int, seed: int = 0) -> list[bytes]:
    """Copies of which one bit differs, spread over the whole."""
    import random

    chance = random.Random(seed)
    copies = []
    for _ in range(how_many):
        place = chance.randrange(8 * len(data))
        copy = bytearray(data)
        copy[place // 8] ^= 1 << place % 8
        copies.append(bytes(copy))
    return copies

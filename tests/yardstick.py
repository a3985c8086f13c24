"""How long is long: a limit in seconds of the processor it was chosen on, so that a slower or a busier one is not
taken for a trap.

A fixed piece of work is timed in this process, right after what it judges, and only where that took longer than the
limit as it stands: a test that is far from its limit, as all should be, costs nothing more.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

# What `_piece` takes on the processor on which the limits were chosen, a Xeon of 2023 with nothing else to do.
PIECE_SECONDS = 0.0105


def _piece() -> float:
    """Of the processor's seconds: plain Python and a little C, as most of what is judged here."""
    began = time.process_time()
    words = {}
    for number in range(15_000):
        words[f"{number:x}"] = (number * 7919) % 1000
    assert len(json.loads(json.dumps(words))) == 15_000
    return time.process_time() - began


def slowness() -> float:
    """How many times longer than there this processor takes now; never less than 1."""
    return max(1.0, sorted(_piece() for _ in range(9))[4] / PIECE_SECONDS)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done inside takes less than so many of the processor's seconds, waiting not counted."""
    began = time.process_time()
    yield
    took = time.process_time() - began
    assert took < seconds or took < seconds * slowness(), f"{took:.2f} s of the processor, and {seconds} are allowed"

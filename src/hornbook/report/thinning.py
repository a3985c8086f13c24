"""Fewer points of a curve, none of its peaks lost.

In: places that rise, and values.  Out: of too many points the highest and the lowest of each stretch, and both ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def thinned(places: Sequence[float], values: Sequence[float], at_most: int) -> list[tuple[float, float]]:
    count = len(places)
    if count <= at_most:
        return list(zip(places, values, strict=True))
    # Each stretch gives two points; the first and the last of all are kept besides.
    edges = np.linspace(0, count, max(at_most // 2 - 1, 1) + 1).astype(int)
    heights = np.asarray(values, dtype=float)
    chosen = {0, count - 1}
    for begin, end in pairwise(edges):
        stretch = heights[begin:end]
        chosen |= {int(begin + stretch.argmin()), int(begin + stretch.argmax())}
    return [(places[place], values[place]) for place in sorted(chosen)]

"""By how much the same sum may come out differently: it follows from the number type and the number of terms.

A processor with wider registers adds in more lanes, and a library groups the terms as it likes; so a figure that one
processor once gave is no measure for another.
"""

from __future__ import annotations

import math

import torch


def rounding(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """Of a sum of so many terms, relative to the sum of their magnitudes.

    Every addition rounds by at most half a step, now up, now down; over many of them that adds up as a random walk
    does, to less than 4 sqrt(n) half steps but once in a thousand times (Higham and Mary, 2019). Where the terms are
    added in several lanes it is less.
    """
    return 4 * math.sqrt(terms) * torch.finfo(dtype).eps / 2


def rounding_of_logits(logits: torch.Tensor, n_layer: int, width: int) -> float:
    """Absolute, of a model in fp32: each layer sums four times in turn (queries, what is attended to, up and down),
    then the head does, none over more than four widths; errors one after another add up as a random walk, too."""
    return float(logits.abs().max()) * math.sqrt(4 * n_layer + 1) * rounding(4 * width)

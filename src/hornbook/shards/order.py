"""Which window of the text is sample number g, and batches of such windows.

In: the kind of order, a seed, the data's fingerprint, the context, and g.  Out: the place where the window starts.
A pure function, in constant time and memory: nothing is shuffled, stored or replayed. So the data position of a run
is one integer, resuming costs nothing, and a rank of many takes its slice of g without asking the others.
A `Loader` takes samples g, g + 1, ... from a split: pairs of (inputs, targets), each (n, context), on the device. torch
is imported where it is needed, so that settings know the kinds without it.

- `windows`: the fixed grid of non-overlapping windows, each once an epoch, in an order of its own each epoch
- `phased`: the same, with the grid shifted by a phase drawn for each epoch, so that epochs cut the text differently
- `places`: a place drawn at random each time

With a stride of one's own, windows of a grid begin so far apart: below the context they overlap, above it some of the
text is left out of an epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hornbook.base.machine import mix_seed
from hornbook.base.settings import Settings

if TYPE_CHECKING:
    import torch

    from hornbook.shards.format import TokenArray

ROUNDS = 6
Places = NDArray[np.int64]
Words = NDArray[np.uint64]
Batch = tuple["torch.Tensor", "torch.Tensor"]


class OrderConfig(Settings):
    kind: Literal["windows", "phased", "places"] = "phased"
    """How samples are laid over the text."""
    stride: int | None = Field(None, ge=1)
    """How far apart windows begin; as long as they are, so that none overlaps another, when not given."""
    drop_last: bool = False
    """Leave out an epoch's last batch where it is not full, rather than fill it from the next epoch."""

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if self.stride is not None and self.kind == "places":
            yield "stride", "windows at random places have none; leave it out, or --order.kind windows"


class SampleOrder:
    """Sample numbers to places in an array of `tokens` ids; a window reads `context` ids and the one after."""

    def __init__(
        self, config: OrderConfig, seed: int, fingerprint: str, tokens: int, context: int, batch: int = 1
    ) -> None:
        self.kind = config.kind
        self.context = context
        self.stride = config.stride or context
        self.tokens = tokens
        # The last window of each phase, too, has an id after it.
        room = tokens - context - (self.stride if config.kind == "phased" else 1)
        self.windows_per_epoch = max(room // self.stride + 1, 0)
        if self.kind == "phased" and self.windows_per_epoch == 0 and tokens > context:  # too short to shift the grid
            self.kind, self.windows_per_epoch = "windows", (tokens - context - 1) // self.stride + 1
        # With drop_last an epoch ends early, at a whole number of batches.
        whole = self.windows_per_epoch // batch * batch
        self.samples_per_epoch = whole if config.drop_last and whole else self.windows_per_epoch
        own = "" if self.stride == context else f"/{self.stride}"
        self._key = f"{self.kind}/{seed}/{fingerprint}/{context}{own}"

    def places(self, samples: Places) -> Places:
        """(n,) sample numbers to (n,) places."""
        if self.kind == "places":
            drawn = _mix(samples.astype(np.uint64) ^ np.uint64(mix_seed(self._key)))
            return (drawn % np.uint64(self.tokens - self.context)).astype(np.int64)
        epochs, within = np.divmod(samples, self.samples_per_epoch)
        result = np.empty_like(samples)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            phase = mix_seed(self._key, "phase", epoch) % self.stride if self.kind == "phased" else 0
            shuffled = permute(within[here], self.windows_per_epoch, mix_seed(self._key, "permutation", epoch))
            result[here] = shuffled * self.stride + phase
        return result


class Loader:
    """The copy to an accelerator is asynchronous, and the accelerator is still busy with the step before when the next
    batch is asked for, so it never waits for the disk."""

    def __init__(self, tokens: TokenArray, order: SampleOrder, device: torch.device) -> None:
        self._tokens = tokens
        self.order = order
        self._device = device
        self._seconds = 0.0

    def take(self, first_sample: int, count: int) -> Batch:
        """Samples first_sample .. first_sample + count - 1."""
        import torch

        began = time.perf_counter()
        numbers = np.arange(first_sample, first_sample + count, dtype=np.int64)
        windows = self._tokens.windows(self.order.places(numbers), self.order.context + 1)
        batch = split_windows(torch.from_numpy(windows), self._device)
        self._seconds += time.perf_counter() - began
        return batch

    def seconds_taken(self) -> float:
        """For batches, since this was asked before."""
        taken, self._seconds = self._seconds, 0.0
        return taken


def split_windows(windows: torch.Tensor, device: torch.device) -> Batch:
    """(n, context + 1) ids to inputs and the targets one place on."""
    if device.type == "cuda":
        windows = windows.pin_memory()
    windows = windows.to(device, non_blocking=True)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def permute(numbers: Places, size: int, key: int) -> Places:
    """Where a keyed permutation of range(size) takes each number: a Feistel network over a square not smaller than
    `size`, walked on until it comes back inside."""
    side = np.uint64(math.isqrt(size - 1) + 1)
    keys = _mix(np.arange(ROUNDS, dtype=np.uint64) + np.uint64(key))
    result = numbers.astype(np.uint64)
    outside = np.ones(len(numbers), dtype=bool)
    while outside.any():
        left, right = np.divmod(result[outside], side)
        for round_key in keys:
            left, right = right, (left + _mix(right ^ round_key) % side) % side
        result[outside] = left * side + right
        outside = result >= size
    return result.astype(np.int64)


def _mix(words: Words) -> Words:
    """splitmix64's finalizer: every bit of the input moves about half of the output's."""
    words = (words + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))

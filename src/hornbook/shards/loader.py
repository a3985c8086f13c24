"""Batches on the device.

In: the training split, its order, and the number of the next sample.  Out: pairs of (inputs, targets), each (n,
context), on the device. The copy to an accelerator is asynchronous, and the accelerator is still busy with the step
before when the next batch is asked for, so it never waits for the disk.
"""

from __future__ import annotations

import numpy as np
import torch

from hornbook.shards.format import TokenArray
from hornbook.shards.order import SampleOrder

Batch = tuple[torch.Tensor, torch.Tensor]


class Loader:
    def __init__(self, tokens: TokenArray, order: SampleOrder, device: torch.device) -> None:
        self._tokens = tokens
        self.order = order
        self._device = device

    def take(self, first_sample: int, count: int) -> Batch:
        """Samples first_sample .. first_sample + count - 1."""
        numbers = np.arange(first_sample, first_sample + count, dtype=np.int64)
        windows = self._tokens.windows(self.order.places(numbers), self.order.context + 1)
        return split_windows(torch.from_numpy(windows), self._device)


def split_windows(windows: torch.Tensor, device: torch.device) -> Batch:
    """(n, context + 1) ids to inputs and the targets one place on."""
    if device.type == "cuda":
        windows = windows.pin_memory()
    windows = windows.to(device, non_blocking=True)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

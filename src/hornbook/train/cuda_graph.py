"""A step that is launched as one: a CUDA graph.

In: what a small step on CUDA does.  Out: the same, its thousand launches recorded once on the device and from then on
started by a single call. A small model's step takes longer to launch, operation by operation, than to compute: 5
million parameters at 2,048 tokens a step take 19 ms on an H200 whose host is busy, and 2 ms recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from hornbook.base.console import warn
from hornbook.shards.order import Batch


class StepTensors(NamedTuple):
    """The metrics of a step, each a number on the device."""

    loss: torch.Tensor
    grad_norm: torch.Tensor  # before clipping
    spike: torch.Tensor  # 1 where the step was left out as one
    scale: torch.Tensor  # by which the loss was scaled
    update: torch.Tensor  # the update ratio (update_ratio.py); nan where it was not measured


# Takes so many samples of the step's batch, from a first on.
Take = Callable[[int, int], Batch]
Step = Callable[[Take, "float | torch.Tensor"], StepTensors]
# Above so much arithmetic the device is the slower one, and a record would only hold memory.
MOST_FLOPS = 8e12
# By then everything has its place: moments, compiled kernels, the libraries' own workspaces.
STEPS_BEFORE = 3


class StepRecorder:
    """Takes steps on CUDA: the first as they come, then from the record, where one is worth having."""

    def __init__(self, step: Step, sequences: int, flops: float, device: torch.device) -> None:
        self._step = step
        self._sequences = sequences
        self._device = device
        self._left = STEPS_BEFORE if flops <= MOST_FLOPS else None  # steps to take before recording
        self._record: _Record | None = None

    def __call__(self, take: Take, factor: float) -> StepTensors:
        """The numbers of a step, its weights changed."""
        if self._left == 0:
            self._left = None
            try:
                self._record = _Record(self._step, take(0, self._sequences), self._device)
            except RuntimeError as error:  # out of memory, or an operation that waits for the host
                first = str(error).splitlines()[0]
                warn(f"this step cannot be recorded ({first[:80]}); going on without, more slowly")
        if self._record is not None:
            return self._record.replay(take(0, self._sequences), factor)
        if self._left is not None:
            self._left -= 1
        # On the device from the first: a record multiplies in float32, and so should what it takes the place of.
        return self._step(take, torch.full((), factor, device=self._device))


class _Record:
    """The seed is not part of it: each replay draws by the one that holds then, and recording must not set one."""

    def __init__(self, step: Step, batch: Batch, device: torch.device) -> None:
        self._ids, self._targets = batch
        self._factor = torch.zeros((), device=device)
        self._replay, self._numbers = _recorded(lambda: step(self._take, self._factor))

    def replay(self, batch: Batch, factor: float) -> StepTensors:
        self._ids.copy_(batch[0])
        self._targets.copy_(batch[1])
        self._factor.fill_(factor)
        self._replay()
        return self._numbers

    def _take(self, first: int, count: int) -> Batch:
        """Of the one batch, which stays where it is on the device."""
        return self._ids[first : first + count], self._targets[first : first + count]


def is_recording(device: torch.device) -> bool:
    """Whether what is called now is written down, and computed later."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _recorded(act: Callable[[], StepTensors]) -> tuple[Callable[[], None], StepTensors]:
    """What starts `act` again, and where its numbers will be. Nothing is computed yet."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        numbers = act()
    return graph.replay, numbers

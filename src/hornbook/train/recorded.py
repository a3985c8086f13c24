"""A step that is launched as one.

In: a run on CUDA whose step is small.  Out: the same step, its thousand launches recorded once on the device and from
then on started by a single call. A small model's step takes longer to launch, operation by operation, than to compute:
5 million parameters at 2,048 tokens a step take 19 ms on an H200 whose host is busy, and 2 ms recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from hornbook.base.console import warn
from hornbook.base.machine import Machine, mix_seed
from hornbook.shards.loader import Batch, Loader
from hornbook.train.checkpoint import TrainState
from hornbook.train.config import RunConfig

Numbers = tuple[torch.Tensor, torch.Tensor]
Learn = Callable[[Any, float | torch.Tensor], Numbers]
# Above so much arithmetic the device is the slower one, and a record would only hold memory.
MOST_FLOPS = 8e12
# By then everything has its place: moments, compiled kernels, the libraries' own workspaces.
STEPS_BEFORE = 3


class Run(Protocol):
    """What a step needs to know of its run, which the loop has whole."""

    config: RunConfig
    machine: Machine
    loader: Loader
    state: TrainState
    weights_are_whole: bool


class StepRecorder:
    """Takes the steps of a run: the first as they come, then from the record, where one is worth having."""

    def __init__(self, learn: Learn) -> None:
        self._learn = learn
        self._taken = 0
        self._record: _Record | None = None
        self._given_up = False

    def step(self, run: Run, factor: float) -> Numbers:
        """The loss and the gradients' length of a step, its weights changed."""
        self._taken += 1
        if self._record is None and self._taken > STEPS_BEFORE and not self._given_up and _pays(run):
            self._begin(run)
        if self._record is not None:
            return self._record.replay(run, factor)
        # On the device from the first: a record multiplies in float32, and so should what it takes the place of.
        on_cuda = run.machine.device.startswith("cuda")
        return self._learn(run, torch.full((), factor, device=run.machine.torch_device) if on_cuda else factor)

    def _begin(self, run: Run) -> None:
        loader = run.loader
        try:
            self._record = _Record(run, self._learn)
        except RuntimeError as error:  # out of memory, or an operation that waits for the host
            self._given_up = True
            warn(f"this step cannot be recorded ({str(error).splitlines()[0][:80]}); going on without, more slowly")
            run.weights_are_whole = True
        finally:
            run.loader = loader


class _Record:
    def __init__(self, run: Run, learn: Learn) -> None:
        self._batch = run.loader.take(run.state.sample, run.config.sequences)
        self._factor = torch.zeros((), device=run.machine.torch_device)
        run.loader = _Held(self._batch, run.state.sample)  # type: ignore[assignment]
        seed_step(run)  # while recording no other seed may be set; each replay draws by the one that holds then
        self._replay, self._numbers = _recorded(lambda: learn(run, self._factor))

    def replay(self, run: Run, factor: float) -> Numbers:
        for place, new in zip(self._batch, run.loader.take(run.state.sample, run.config.sequences), strict=True):
            place.copy_(new)
        self._factor.fill_(factor)
        seed_step(run)
        run.weights_are_whole = False
        self._replay()
        run.weights_are_whole = True
        return self._numbers


def _recorded(act: Callable[[], Numbers]) -> tuple[Callable[[], None], Numbers]:
    """What starts `act` again, and where its numbers will be. Nothing is computed yet."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        numbers = act()
    return graph.replay, numbers


class _Held:
    """A loader of one batch, which stays where it is on the device."""

    def __init__(self, batch: Batch, first_sample: int) -> None:
        self._batch = batch
        self._first = first_sample

    def take(self, first_sample: int, count: int) -> Batch:
        first = first_sample - self._first
        ids, targets = self._batch
        return ids[first : first + count], targets[first : first + count]


def seed_step(run: Run) -> None:
    """All that is random in a step follows from its number, so a resumed run repeats it."""
    torch.manual_seed(mix_seed(run.config.seed, "step", run.state.step))


def _pays(run: Run) -> bool:
    if not run.machine.device.startswith("cuda"):
        return False
    tokens = run.config.sequences * run.config.window
    return tokens * run.config.model.flops_per_token(run.config.window) <= MOST_FLOPS

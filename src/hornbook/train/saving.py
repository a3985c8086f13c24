"""Checkpoints are written beside training.

In: a learner, and the loop's state after a step.  Out: the checkpoint of that step, some steps later.
The weights and moments are copied at once; to lay them out, write, hash and rename them, and to let go of older ones,
is the work of a thread, one checkpoint at a time. What goes wrong in it is raised at the next step. The weights of the
best evaluation are kept in memory until the next checkpoint takes them along. Where main memory has no room for copies,
training waits until all is written.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from hornbook.base.background import Background
from hornbook.base.console import warn
from hornbook.base.machine import free_memory_bytes, is_out_of_memory
from hornbook.base.world import World
from hornbook.train import distributed_checkpoint
from hornbook.train.checkpoint import (
    CHECKPOINT_BYTES_OF_A_PARAMETER,
    WEIGHT_BYTES_OF_A_PARAMETER,
    Best,
    Learned,
    TrainState,
    copied,
)
from hornbook.train.learner import Learner

if TYPE_CHECKING:
    import torch

# Of the memory that is free, for the copy; another program may want some meanwhile.
SHARE_OF_FREE_MEMORY = 0.8
# Pinned memory comes in powers of two.
PINNED_ROUNDED_UP = 2
T = TypeVar("T")


class Saver:
    """Writes the checkpoints of one run."""

    def __init__(
        self,
        learner: Learner,
        write: Callable[[Learned, TrainState], None],
        saved_step: int,
        world: World | None = None,
    ) -> None:
        self.saved_step = saved_step
        """Of the newest checkpoint that is safely on the disk."""
        self._learner, self._write, self._world = learner, write, world or World()
        self._in_parts = self._world.size > 1 and learner.model.config.n_params() >= distributed_checkpoint.PARTS_FROM
        self._beside: bool | None = None
        self._thread = Background()
        self._writing: Future[None] | None = None
        self._best: Best | None = None
        self._best_on_its_way: Best | None = None

    def __enter__(self) -> Self:
        self._thread.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whatever ends a run, what is being written is finished first; who asks to leave at once leaves it behind."""
        at_once = error is not None and not isinstance(error, Exception)
        self._thread.__exit__(*((kind, error, trace) if at_once else (None, None, None)))

    def begin(self, state: TrainState) -> None:
        """Copy what was learned, and have it written."""
        self.wait()
        if self._best is not None and self._best.step != state.best_step:
            self._best = None  # the checkpoint itself is better
        meeting = self._world.meeting("save") if self._in_parts else None
        learned = replace(Learned.of(self._learner, meeting), best=self._best)
        if not self._in_parts and not self._world.is_first:
            self.saved_step = state.step
            return
        self._best_on_its_way, state = self._best, replace(state, logs=dict(state.logs))
        if (copy := self._copied(learned.copied)) is not None:
            self._writing = self._thread.submit(self._save, copy, state)
        else:
            self._save(learned, state)
            self._best = None

    def remember_best(self, state: TrainState) -> bool:
        """Have the weights of this step written with the next checkpoint; False where memory has no room for them."""
        if self._in_parts:
            return False
        kept = self._learner.kept_weights()
        return self._world.by_first(lambda: self._remember(state, kept))

    def _remember(self, state: TrainState, kept: dict[str, torch.Tensor]) -> bool:
        weights = self._copied(lambda: copied(kept))
        if weights is not None:
            self._best = Best(state.step, state.val_loss, weights)
        return weights is not None

    def raise_errors(self) -> None:
        """Raise what went wrong since the last call."""
        if self._world.any(self._writing is not None and self._writing.done()):
            self.wait()

    def wait(self) -> None:
        """Until what is being written is on the disk; raise what went wrong."""
        self._world.by_first(self._wait)
        if not self._world.is_first:
            self._wait()

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
            if self._best is self._best_on_its_way:
                self._best = None

    def _save(self, learned: Learned, state: TrainState) -> None:
        self._write(learned, state)
        self.saved_step = state.step

    def _copied(self, copy: Callable[[], T]) -> T | None:
        try:
            return copy() if self._may_copy() else None
        except RuntimeError as error:
            if not is_out_of_memory(error) and "out of memory" not in str(error):  # so CUDA says it of pinned memory
                raise
            self._beside = False
            return None

    def _may_copy(self) -> bool:
        """Decided by what is free before the first copy, which later ones take the place of: a checkpoint's, of best
        weights that go with it, and of better ones."""
        if self._beside is None:
            model = self._learner.model
            needed = (CHECKPOINT_BYTES_OF_A_PARAMETER + 2 * WEIGHT_BYTES_OF_A_PARAMETER) * model.config.n_params()
            needed *= PINNED_ROUNDED_UP if model.embedding.weight.is_cuda else 1
            free = free_memory_bytes("cpu")
            self._beside = free is not None and needed <= SHARE_OF_FREE_MEMORY * free
            if not self._beside:
                warn("main memory has no room for a second copy of what is learned: training waits while it is saved")
        return self._beside

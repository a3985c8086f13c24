"""Checkpoints are written beside training.

In: a learner, and the loop's state after a step.  Out: the checkpoint of that step, some steps later.
The weights and moments are copied at once; to lay them out, write, hash and rename them, and to let go of older ones,
is the work of a thread, one checkpoint at a time. What goes wrong in it is raised at the next step. Where main memory
has no room for the copy, training waits until the checkpoint is written.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Self

from hornbook.base.background import Background
from hornbook.base.console import warn
from hornbook.base.machine import free_memory_bytes, is_out_of_memory
from hornbook.train.checkpoint import CHECKPOINT_BYTES_OF_A_PARAMETER, Learned, TrainState
from hornbook.train.learner import Learner

# Of the memory that is free, for the copy; another program may want some meanwhile.
SHARE_OF_FREE_MEMORY = 0.8
# Pinned memory comes in powers of two.
PINNED_ROUNDED_UP = 2


class Saver:
    """Writes the checkpoints of one run."""

    def __init__(self, learner: Learner, write: Callable[[Learned, TrainState], None], saved_step: int) -> None:
        self.saved_step = saved_step
        """Of the newest checkpoint that is safely on the disk."""
        self._learner, self._write = learner, write
        self._beside: bool | None = None
        self._thread = Background()
        self._writing: Future[None] | None = None

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
        learned, state = Learned.of(self._learner), replace(state, logs=dict(state.logs))
        if self._may_copy():
            try:
                learned = learned.copied()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._beside = False
        if self._beside:
            self._writing = self._thread.submit(self._save, learned, state)
        else:
            self._save(learned, state)

    def look(self) -> None:
        """Raise what went wrong since the last look."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until what is being written is on the disk; raise what went wrong."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _save(self, learned: Learned, state: TrainState) -> None:
        self._write(learned, state)
        self.saved_step = state.step

    def _may_copy(self) -> bool:
        """Decided by what is free before the first copy, which later ones take the place of."""
        if self._beside is None:
            model = self._learner.model
            needed = CHECKPOINT_BYTES_OF_A_PARAMETER * model.config.n_params()
            needed *= PINNED_ROUNDED_UP if model.embedding.weight.is_cuda else 1
            free = free_memory_bytes("cpu")
            self._beside = free is not None and needed <= SHARE_OF_FREE_MEMORY * free
            if not self._beside:
                warn("main memory has no room for a second copy of what is learned: training waits while it is saved")
        return self._beside

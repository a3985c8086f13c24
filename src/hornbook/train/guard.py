"""What must not end a run, or must end it well.

In: signals, numbers that are not finite, memory that runs out.  Out: a flag to stop at, a count, a smaller
micro-batch.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from hornbook.base.console import warn
from hornbook.base.errors import UserError
from hornbook.base.machine import BY_HAND, is_out_of_memory, signals_to_end
from hornbook.base.output import tell
from hornbook.train.metrics import StepNumbers, StepReading

NON_FINITE_IN_A_ROW = 10


class StopSignals:
    """Ctrl-C, SIGTERM and a terminal that is closed ask for the end: the loop finishes its step, saves, and leaves. Who
    asks a third time leaves at once."""

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in signals_to_end():
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number not in BY_HAND:  # a closed terminal, its shell and ssh each say so
            return
        self.asked += 1
        if self.asked == 1:
            with contextlib.suppress(RuntimeError):  # it came in the middle of a line that was being written
                tell("stopping: this step is finished and saved first")
        elif self.asked > 2:
            raise KeyboardInterrupt


class NonFiniteGuard:
    """Steps whose loss or gradient was not finite. Their updates never reached the weights; too many in a row end the
    run."""

    def __init__(self, in_a_row: int = 0, dtype: str = "float32") -> None:
        self.in_a_row = in_a_row
        self._or = ", or --train.dtype float32, which holds larger numbers" if dtype == "float16" else ""

    def check(self, reading: StepReading, told: StepNumbers, sequences: int, note: Callable[[str], None]) -> None:
        """Tell of a step that was left out: for its scale, which then falls, for numbers that are not finite, or for a
        spike (spikes.py)."""
        if told.overflowed:
            note(
                f"step {reading.step}: gradients past what float16 holds, as happens; left out, the loss is scaled by "
                f"{told.scale / 2:,.0f} from here on"
            )
        else:
            self.count(reading.step, reading.first_sample, sequences, told.finite)
        if told.spike:
            warn(
                f"step {reading.step}: loss {told.loss:.3f}, gradient {told.grad_norm:,.2f}, far beyond the "
                f"steps before; left out ({_samples(reading.first_sample, sequences)}), the weights stay as they were"
            )

    def count(self, step: int, first_sample: int, sequences: int, finite: bool) -> None:
        """Steps in a row that are not finite; too many are an error."""
        if finite:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        samples = _samples(first_sample, sequences)
        warn(f"step {step}: loss or gradient is not finite; left out ({samples}), the weights stay as they were")
        if self.in_a_row >= NON_FINITE_IN_A_ROW:
            raise UserError(
                f"step {step}: not finite for {self.in_a_row} steps in a row; lower --optim.lr and --optim.matrix-lr, "
                f"or lengthen --schedule.warmup-steps, and train again{self._or}"
            )


def _samples(first: int, count: int) -> str:
    return f"samples {first} to {first + count - 1}"


@contextlib.contextmanager
def memory_for_a_model() -> Iterator[None]:
    """For its weights and all that is remembered of them, which no smaller batch makes smaller."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "out of memory for the weights and what the optimizer remembers of them; lower --model.n-embd or "
            "--model.n-layer (hornbook model tells what they take)"
        ) from None


def smaller_micro_batch(micro_batch: int) -> int:
    """Half as many sequences at once, the batch staying as it is; a UserError where one is too many."""
    if micro_batch == 1:
        raise UserError("out of memory with one sequence at a time; lower --model.context, n-layer or n-embd")
    warn(
        f"out of memory with {micro_batch} sequences at once; going on with {micro_batch // 2}, "
        "the batch stays as it is"
    )
    return micro_batch // 2

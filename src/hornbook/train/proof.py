"""Does a resumed run continue exactly?

In: what its log has of steps that no checkpoint kept, and that are taken again; then those steps.  Out: one line, which
says so, or what differs. What the log has is there anyway: a run that was stopped with its work saved has nothing to
compare, and nothing is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hornbook.runs.logs import entries_from

STEPS_PROVED = 2
# Two steps and what is told between them; samples are in another log.
BYTES_LOOKED_AT = 1 << 16
COMPARED = ("loss", "grad_norm")


class Proof:
    """Of a run that is resumed, the steps that it takes again."""

    def __init__(self, entries: Iterable[Mapping[str, Any]], step: int, machine: Iterable[str]) -> None:
        expected = {each["step"]: each for each in entries if "loss" in each and isinstance(each.get("step"), int)}
        steps = range(step + 1, step + 1 + STEPS_PROVED)
        self._expected = {each: expected[each] for each in steps if each in expected}
        self._machine, self._proved = tuple(machine), list[int]()

    @classmethod
    def of(cls, log: Path, kept_bytes: int, step: int, machine: Iterable[str]) -> Proof:
        """Before the log is cut back to where the checkpoint was."""
        return cls(entries_from(log, kept_bytes, BYTES_LOOKED_AT), step, machine)

    def compare(self, step: int, loss: float, length: float, factor: float) -> str | None:
        """The verdict, once all is seen that can be compared: a rate that follows the clock, or another end, is another
        rate, and what it leads to another step."""
        if not self._expected:
            return None
        before = self._expected.pop(step, None)
        if before is None:
            return None
        if (difference := difference_of(step, before, loss, length)) is not None:
            self._expected.clear()
            return f"does not continue exactly: {difference}; {because_of(self._machine)}"
        self._proved.append(step)
        if before.get("lr_factor") != factor:
            self._expected.clear()
        if self._expected:
            return None
        steps = f"steps {self._proved[0]} and {step} have" if len(self._proved) > 1 else f"step {step} has"
        return f"continues exactly: {steps} the loss and the gradients of before"


def difference_of(step: int, before: Mapping[str, Any], loss: float, length: float) -> str | None:
    """Between the numbers of a step and its line in the log, which has them to the last bit, but none that is not
    finite."""
    for name, now in zip(COMPARED, (loss, length), strict=True):
        was = before.get(name)
        if was != (now if math.isfinite(now) else None):
            return f"step {step} had {name.replace('_', ' ')} {was}, now {now}"
    return None


def because_of(machine: tuple[str, ...]) -> str:
    return ", ".join(machine) if machine else "the machine, torch and the threads are the same as then"

"""Which schedules there are, and their knobs. No torch is imported, so that settings know their names without it.

A schedule is one entry in SCHEDULES: how the learning rate falls, from 1 to 0, by the settings, the step, and the share
of the run that is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hornbook.base.settings import Settings

Fall = Callable[["ScheduleConfig", int, float], float]


def _drop(config: ScheduleConfig, step: int, done: float) -> float:
    assert config.drop_step is not None
    return float(step < config.drop_step)


SCHEDULES: dict[str, Fall] = {
    "trapezoid": lambda config, step, done: min((1 - done) / config.decay_share, 1.0),
    "cosine": lambda config, step, done: 0.5 * (1 + math.cos(math.pi * done)),
    "constant": lambda config, step, done: 1.0,
    "drop": _drop,
}
if TYPE_CHECKING:
    ScheduleName = str
else:
    ScheduleName = Literal[tuple(SCHEDULES)]


class ScheduleConfig(Settings):
    kind: ScheduleName = "trapezoid"
    """How the learning rate falls: at the end in a line, all along in half a wave, not at all, or once, at a step."""
    warmup_steps: int = Field(20, ge=0)
    """Steps over which the learning rate rises from zero."""
    decay_share: float = Field(0.5, gt=0, le=1)
    """Share of the run over which a trapezoid falls."""
    drop_step: int | None = Field(None, ge=1)
    """For drop: the last step at the full learning rate."""
    final_share: float = Field(0.0, ge=0, le=10)
    """What is left of the learning rate at the end, or after the drop; above 1 it rises."""

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if (self.kind == "drop") != (self.drop_step is not None):
            yield "drop_step", "goes with --schedule.kind drop, and that with a step"

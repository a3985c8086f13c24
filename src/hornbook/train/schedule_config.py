"""Which schedules there are, and their knobs. No torch is imported, so that settings know their names without it.

A schedule is one entry in SCHEDULES: how the learning rate falls, from 1 to 0, by the settings and by where the run is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hornbook.base.settings import Settings


@dataclass(frozen=True)
class Place:
    """Where a run is, before a step."""

    step: int
    """Taken so far."""
    share: float
    """Of the whole run that is done."""
    done: float
    """Of what is planned; the same, unless the run's end was moved."""

    @property
    def steps_left(self) -> float:
        """At the pace so far; exact where steps, tokens or epochs end the run."""
        return self.step * (1 - self.share) / self.share if self.share else math.inf


Fall = Callable[["ScheduleConfig", Place], float]


def _trapezoid(config: ScheduleConfig, at: Place) -> float:
    fall = at.steps_left / config.decay_steps if config.decay_steps else (1 - at.done) / config.decay_share
    return min(fall, 1.0)


def _drop(config: ScheduleConfig, at: Place) -> float:
    if config.drop_step is not None:
        return float(at.step < config.drop_step)
    assert config.drop_share is not None
    return float(at.share < config.drop_share)


SCHEDULES: dict[str, Fall] = {
    "trapezoid": _trapezoid,
    "linear": lambda config, at: 1 - at.done,
    "cosine": lambda config, at: 0.5 * (1 + math.cos(math.pi * at.done)),
    "constant": lambda config, at: 1.0,
    "drop": _drop,
}
if TYPE_CHECKING:
    ScheduleName = str
else:
    ScheduleName = Literal[tuple(SCHEDULES)]


class ScheduleConfig(Settings):
    kind: ScheduleName = "trapezoid"
    """How the learning rate falls: in a line at the end (trapezoid), or all along (linear); in half a wave; not at all;
    or once (drop)."""
    warmup_steps: int = Field(20, ge=0)
    """Steps over which the learning rate rises from zero."""
    warmup_share: float | None = Field(None, gt=0, le=1)
    """Share of the run over which it rises, in place of warmup_steps."""
    decay_share: float = Field(0.5, gt=0, le=1)
    """Share of the run over which a trapezoid falls."""
    decay_steps: int | None = Field(None, ge=1)
    """The last steps, over which a trapezoid falls, in place of decay_share."""
    drop_step: int | None = Field(None, ge=1)
    """For drop: the last step at the full learning rate."""
    drop_share: float | None = Field(None, gt=0, lt=1)
    """For drop: the share of the run with the full learning rate, in place of drop_step."""
    final_share: float = Field(0.0, ge=0, le=10)
    """What is left of the learning rate at the end, or after the drop; above 1 it rises."""

    def mistakes(self) -> Iterator[tuple[str, str]]:
        given = [name for name in ("drop_step", "drop_share") if getattr(self, name) is not None]
        if len(given) > 1:
            yield "drop_share", "says when as --schedule.drop-step does; take one, the other auto"
        elif (self.kind == "drop") != bool(given):
            yield given[0] if given else "drop_step", "goes with --schedule.kind drop, and that with a step or a share"

    def dropped_in(self, step: int, before: float, after: float) -> bool:
        """Whether this step, by which the run went from one share of the whole to another, is the last one before the
        drop."""
        if self.drop_step is not None:
            return step == self.drop_step and after < 1
        return self.drop_share is not None and before < self.drop_share <= after < 1

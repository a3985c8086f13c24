"""The learning rate over a run.

In: the step, and the progress from 0 to 1, which follows from where the run is to stop.  Out: a factor for every
learning rate.
A run whose end was moved is planned anew from there: the rate rises to where the plan for the new end has it, in place
of a jump, stays there and falls, as over a run of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from hornbook.train.checkpoint import TrainState
from hornbook.train.config import STOPS, RunConfig, TrainConfig
from hornbook.train.schedules import SCHEDULES, ScheduleConfig

PLANNED = "planned_since"
# Of what was added: in a short one, `warmup_steps` would take most of it.
REWARM_SHARE = 0.1


@dataclass(frozen=True)
class Extension:
    """Where a plan begins that was made when the end was moved; a run that was left alone has the one of its
    beginning."""

    step: int = 0
    progress: float = 0.0
    """The share of the run, with its new end, that was done."""
    factor: float = 0.0
    """What the old plan had come to."""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """As run.json has it."""
        facts = record.get(PLANNED, {"step": 0, "progress": 0.0, "factor": 0.0})
        return cls(int(facts["step"]), float(facts["progress"]), float(facts["factor"]))

    def record(self) -> dict[str, Any]:
        return {PLANNED: asdict(self)} if self.step else {}

    def told(self, config: ScheduleConfig) -> str:
        height = _height(config, self.step, self.progress, 0.0)
        return (
            f"the end was moved: the learning rate goes from {self.factor:.0%} of its height to {height:.0%} in small "
            "steps, and falls towards the new end"
        )


WHOLE = Extension()


def share_done(knobs: TrainConfig, state: TrainState, samples_per_epoch: int) -> float:
    """From 0 to 1, by whichever end is nearest."""
    shares = [0.0]
    if knobs.steps is not None:
        shares.append(state.step / knobs.steps)
    if knobs.epochs is not None:
        shares.append(state.sample / (samples_per_epoch * knobs.epochs))
    if knobs.tokens is not None:
        shares.append(state.tokens / knobs.tokens)
    if knobs.minutes is not None:
        shares.append(state.seconds / (60 * knobs.minutes))
    if knobs.target_loss is not None and state.reached_loss is not None:
        shares.append(float(state.reached_loss <= knobs.target_loss))
    return max(shares)


def lr_factor(config: ScheduleConfig, step: int, progress: float, since: Extension = WHOLE) -> float:
    """Step 0 is the first; progress is the share of the run that is done before it."""
    progress = min(max(progress, 0.0), 1.0)
    done = min(max((progress - since.progress) / (1 - since.progress), 0.0), 1.0) if since.progress < 1 else 1.0
    warm = min((step - since.step + 1) / config.warmup_steps, 1.0) if config.warmup_steps else float(since == WHOLE)
    rise = warm if since == WHOLE else max(warm, min(done / REWARM_SHARE, 1.0))
    return since.factor + (_height(config, step, since.progress, done) - since.factor) * rise


def _height(config: ScheduleConfig, step: int, begun: float, done: float) -> float:
    """What the rate is to be, once it is warm. Where the plan of the whole had fallen already, what was added begins
    from there: a little more of a run is not a new one."""
    fall = SCHEDULES[config.kind]
    share = fall(config, step, begun) * fall(config, step, done)
    return config.final_share + (1 - config.final_share) * share


def planned_since(
    before: RunConfig, now: RunConfig, state: TrainState, samples_per_epoch: int, since: Extension
) -> Extension:
    """The plan to follow from here on, where the stops may have been changed. What does not make the rate rise needs
    none: the run goes on as one that was to end there from the first."""
    share = share_done(now.train, state, samples_per_epoch)
    if since.step > state.step:  # the checkpoint of that step is lost
        since = replace(since, step=state.step, progress=share)
    if all(getattr(before.train, stop) == getattr(now.train, stop) for stop in STOPS):
        return since
    stood = lr_factor(now.schedule, state.step, share_done(before.train, state, samples_per_epoch), since)
    if since == WHOLE and lr_factor(now.schedule, state.step, share) <= stood:
        return WHOLE
    return Extension(state.step, share, stood)

"""The learning rate over a run.

In: the step, and the progress from 0 to 1, which follows from where the run is to stop.  Out: a factor for every
learning rate.
A run whose end was moved is planned anew from there: the rate rises to where the plan for the new end has it, in place
of a jump, stays there and falls, as over a run of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from hornbook.train.checkpoint import TrainState
from hornbook.train.config import STOPS, RunConfig, TrainConfig
from hornbook.train.schedule_config import SCHEDULES, Place, ScheduleConfig

PLANNED = "planned_since"
# Of what was added: in a short one, `warmup_steps` would take most of it.
REWARM_SHARE = 0.1
# A warm-up that is followed by a fall at once does not come to the whole; of half a wave, a fifth of it to this.
LEAST_PEAK, PLACES = 0.9, 1000


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
        height = _height(config, self.step, self.progress, 0.0, self)
        return (
            f"the end was moved: the learning rate goes from {self.factor:.0%} of its height to {height:.0%} in small "
            "steps, and falls towards the new end"
        )


NOT_EXTENDED = Extension()


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


def lr_factor(config: ScheduleConfig, step: int, progress: float, since: Extension = NOT_EXTENDED) -> float:
    """Step 0 is the first; progress is the share of the run that is done before it."""
    progress = min(max(progress, 0.0), 1.0)
    done = min(max((progress - since.progress) / (1 - since.progress), 0.0), 1.0) if since.progress < 1 else 1.0
    if config.warmup_share is not None:
        warm = min(done / config.warmup_share, 1.0)
    else:
        warm = (
            min((step - since.step + 1) / config.warmup_steps, 1.0)
            if config.warmup_steps
            else float(since == NOT_EXTENDED)
        )
    rise = warm if since == NOT_EXTENDED else max(warm, min(done / REWARM_SHARE, 1.0))
    return since.factor + (_height(config, step, progress, done, since) - since.factor) * rise


def _height(config: ScheduleConfig, step: int, progress: float, done: float, since: Extension) -> float:
    """What the rate is to be, once it is warm. Where the plan of the whole had fallen already, what was added begins
    from there: a little more of a run is not a new one."""
    fall = SCHEDULES[config.kind]
    fallen = fall(config, Place(since.step, since.progress, since.progress))
    share = fallen * fall(config, Place(step, progress, done))
    return config.final_share + (1 - config.final_share) * share


def doubts_of(config: ScheduleConfig, steps: float) -> Iterator[str]:
    """What the schedule of a run of so many steps cannot do."""
    last = math.ceil(steps) - 1
    if config.kind == "drop" and config.drop_step is not None and config.drop_step > last:
        yield f"the learning rate drops after step {config.drop_step:,}, but the run ends with step {last + 1:,}"
    rising = config.warmup_share * steps if config.warmup_share is not None else config.warmup_steps
    if config.final_share > 1 or rising < 2:
        return
    # Nothing but the warm-up rises, so the peak is no later than its end; of a long one some places are enough.
    until = min(math.ceil(rising), last)
    places = sorted({round(until * place / PLACES) for place in range(PLACES + 1)})
    peak = max(lr_factor(config, step, step / steps) for step in places)
    if peak < LEAST_PEAK:
        yield (
            f"a warm-up of {rising:,.0f} in a run of {steps:,.0f} steps peaks at {peak:.3f} of the learning rate; "
            f"--schedule.warmup-steps {max(steps / 10, 1):.0f} reaches it"
        )


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
    if since == NOT_EXTENDED and lr_factor(now.schedule, state.step, share) <= stood:
        return NOT_EXTENDED
    return Extension(state.step, share, stood)

"""When a run evaluates, samples and saves, and on how much text it evaluates.

In: a run's settings, and how many steps it will take.  Out: how many evaluations there are of it, on how much of the
validation text, and how many samples.
Together they are to cost a twelfth of the time, but for the last of each: of a long run all ten evaluations see all of
the text, of a short one fewer see a part, always the same. It follows from settings and sizes alone, so that a run
bounded by steps does the same on any machine; only of one that is bounded by minutes the speed decides, as its first
steps show it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hornbook.train.checkpoint import TrainState, has_snapshot
from hornbook.train.config import RunConfig

EVALUATIONS = SAMPLES = 10
# A large model takes a second or two to be saved, of a small one nobody notices.
SAVE_EVERY_MINUTES, SAVE_SMALL_EVERY_MINUTES, SMALL = 5.0, 1.0, 20_000_000
SHARE_FOR_EVALUATIONS = 0.05
SHARE_FOR_SAMPLES = 0.03
# Of what was learned in: the last look at the best model, on all of the text.
SHARE_FOR_THE_WHOLE = 0.1
# Of a token: forwards and backwards, and forwards alone.
TRAINED, SCORED = 3, 1
# Of less, chance would decide which evaluation is the best.
LEAST_TOKENS = 8192
# How many tokens a model says in the time of a step: on an accelerator its launches take as long as a small step's.
TOKENS_SAID_IN_A_STEP = {"cpu": 40.0}
ELSEWHERE = 1.0


@dataclass(frozen=True)
class Plan:
    evaluations: int = EVALUATIONS
    windows: int = 0
    """That an evaluation sees; 0: all."""
    samples: int = SAMPLES


# Until it is known how long a run will be: none before its end.
UNKNOWN = Plan(evaluations=1, samples=1)


@dataclass(frozen=True)
class Due:
    evaluate: bool
    sample: bool
    save: bool
    snapshot: bool

    @property
    def anything(self) -> bool:
        return self.evaluate or self.sample or self.save or self.snapshot


class Timetable:
    """Of one run."""

    def __init__(self, config: RunConfig, samples_per_epoch: int, val_tokens: int, device: str) -> None:
        self._config, self._samples_per_epoch = config, samples_per_epoch
        self._val_tokens, self._device = val_tokens, device
        self._plan: Plan | None = None

    def due(self, state: TrainState, before: float, after: float, since_saved: float) -> Due:
        """After a step, by which the run went from one share of the whole to another."""
        knobs, plan = self._config.train, self.plan(state)
        by_steps, from_step = knobs.eval_every_steps, knobs.eval_from_step or 0
        minutes = save_every_minutes(self._config)
        evaluating = _every(state.step - from_step, by_steps, _passes(before, after, plan.evaluations))
        with_it = evaluating if by_steps is not None else _passes(before, after, plan.samples)
        return Due(
            evaluate=evaluating,
            sample=_every(state.step, knobs.sample_every_steps, with_it),
            save=_every(state.step, knobs.save_every_steps, False) or since_saved > 60 * minutes,
            snapshot=knobs.snapshots and has_snapshot(state.step, self._config.model.n_params()),
        )

    def plan(self, state: TrainState) -> Plan:
        knobs = self._config.train
        if knobs.eval_every_steps is not None or knobs.eval_batches is not None:
            return Plan()  # who says how often, or on how much, has it so
        if self._plan is None:
            steps = steps_in_all(self._config, self._samples_per_epoch, state.step, state.seconds)
            if steps is None:
                return UNKNOWN
            self._plan = planned(self._config, steps, self._val_tokens, self._device, state.eval_windows)
        return self._plan

    def windows(self, state: TrainState) -> int | None:
        """On how many to evaluate, the same throughout a run, so that evaluations can be compared; None: on all."""
        if (batches := self._config.train.eval_batches) is not None:
            return batches * self._config.sequences
        if state.eval_windows is None:
            plan = self.plan(state)
            first = _windows(self._config, LEAST_TOKENS, self._val_tokens)
            state.eval_windows = first if plan is UNKNOWN else plan.windows
        return state.eval_windows or None

    def has_time_for_the_whole(self, state: TrainState) -> bool:
        """Whether to score the best model on all of the validation text at the end, where evaluations saw a part; in a
        run of moments that would take most of the time."""
        affordable = SHARE_FOR_THE_WHOLE * state.tokens * TRAINED / SCORED
        return bool(state.eval_windows) and self._val_tokens <= affordable


def save_every_minutes(config: RunConfig) -> float:
    """A power cut costs no more than that."""
    knobs = config.train
    if knobs.save_every_minutes is not None:
        return knobs.save_every_minutes
    if knobs.save_every_steps is not None:
        return math.inf
    return SAVE_SMALL_EVERY_MINUTES if config.model.n_params() <= SMALL else SAVE_EVERY_MINUTES


def planned(config: RunConfig, steps: float, val_tokens: int, device: str, windows: int | None) -> Plan:
    """For a run of so many steps; where evaluations have seen so many windows before, they go on to."""
    said = config.sample.tokens * max(len(config.sample.prompts or ()), 1)
    samples = SHARE_FOR_SAMPLES * steps * TOKENS_SAID_IN_A_STEP.get(device, ELSEWHERE) / said
    affordable = SHARE_FOR_EVALUATIONS * steps * config.sequences * config.window * TRAINED / SCORED
    if windows is None:
        windows = _windows(config, max(affordable / EVALUATIONS, LEAST_TOKENS), val_tokens)
    seen = min(windows * config.window, val_tokens) if windows else val_tokens
    return Plan(
        evaluations=min(max(int(affordable / seen), 1), EVALUATIONS),
        windows=windows,
        samples=min(max(int(samples), 1), SAMPLES),
    )


def _windows(config: RunConfig, tokens: float, val_tokens: int) -> int:
    """How many windows so many tokens are; 0: all."""
    return max(int(tokens / config.window), 1) if tokens < val_tokens else 0


def steps_in_all(config: RunConfig, samples_per_epoch: int, step: int, seconds: float) -> float | None:
    """Which the run will have taken at its end; None where it does not know yet."""
    knobs = config.train
    ends: list[float] = [knobs.steps] if knobs.steps is not None else []
    if knobs.epochs is not None:
        ends.append(knobs.epochs * samples_per_epoch / config.sequences)
    if knobs.tokens is not None:
        ends.append(knobs.tokens / (config.sequences * config.window))
    if knobs.minutes is not None:
        if step < 3 or seconds < 0.02 * 60 * knobs.minutes:
            return None
        ends.append(step * 60 * knobs.minutes / seconds)
    return min(ends, default=None)


def _passes(before: float, after: float, times: int) -> bool:
    """Whether a share passes one of so many equal parts of the whole."""
    return int(after * times) > int(before * times)


def _every(step: int, steps: int | None, otherwise: bool) -> bool:
    return step % steps == 0 if steps is not None else otherwise

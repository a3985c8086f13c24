"""How often a run pauses to look at itself, and how long.

In: a run's settings, and how many steps it will take.  Out: how many evaluations there are of it, on how much of the
validation text, and how many samples.
Together they are to cost a twelfth of the time at most: of a long run all ten evaluations see all of the text, of a
short one fewer see a part, always the same. It follows from settings and sizes alone, so that a run bounded by steps
does the same on any machine; only of one that is bounded by minutes the speed decides, as its first steps show it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hornbook.train.config import RunConfig

EVALUATIONS = SAMPLES = 10
SHARE_FOR_EVALUATIONS = 0.05
SHARE_FOR_SAMPLES = 0.03
# Of a token: forwards and backwards, and forwards alone.
TRAINED, SCORED = 3, 1
# Of less, chance would decide which evaluation is the best.
LEAST_TOKENS = 8192
# How many tokens a model says in the time of a step: on an accelerator its launches take as long as a small step's.
TOKENS_SAID_IN_A_STEP = {"cpu": 40.0}
ELSEWHERE = 1.0


@dataclass(frozen=True)
class Pauses:
    evaluations: int = EVALUATIONS
    windows: int | None = None
    """That an evaluation sees; None: all."""
    samples: int = SAMPLES


# Until it is known how long a run will be: none before its end.
UNKNOWN = Pauses(evaluations=1, samples=1)


def planned_pauses(config: RunConfig, steps: float, val_tokens: int, device: str, windows: int | None) -> Pauses:
    """For a run of so many steps; where evaluations have seen so many windows before, they go on to."""
    said = config.sample.tokens * max(len(config.sample.prompts), 1)
    samples = SHARE_FOR_SAMPLES * steps * TOKENS_SAID_IN_A_STEP.get(device, ELSEWHERE) / said
    affordable = SHARE_FOR_EVALUATIONS * steps * config.sequences * config.window * TRAINED / SCORED
    if windows is None:
        windows = windows_of(config, max(affordable / EVALUATIONS, LEAST_TOKENS), val_tokens)
    seen = min(windows * config.window, val_tokens) if windows else val_tokens
    return Pauses(
        evaluations=min(max(int(affordable / seen), 1), EVALUATIONS),
        windows=windows or None,
        samples=min(max(int(samples), 1), SAMPLES),
    )


def windows_of(config: RunConfig, tokens: float, val_tokens: int) -> int:
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

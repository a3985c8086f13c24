"""The learning rate over a run."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.train.checkpoint import TrainState
from hornbook.train.config import RunConfig, ScheduleConfig
from hornbook.train.schedule import REWARM_SHARE, WHOLE, Extension, lr_factor, planned_since

schedules = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(["trapezoid", "cosine", "constant"]),
    warmup_steps=st.integers(0, 1000),
    decay_share=st.floats(0.001, 1),
    final_share=st.floats(0, 1),
)


@pytest.mark.parametrize(
    ("kind", "step", "progress", "expected"),
    [
        # Ten steps of warm-up: the first is a tenth, not nothing.
        ("trapezoid", 0, 0.0, 0.1),
        ("trapezoid", 4, 0.04, 0.5),
        ("trapezoid", 9, 0.09, 1.0),
        # Level until the last two fifths, then a line from 1 to 0.2.
        ("trapezoid", 50, 0.5, 1.0),
        ("trapezoid", 60, 0.6, 1.0),
        ("trapezoid", 80, 0.8, 0.6),
        ("trapezoid", 90, 0.9, 0.4),
        ("trapezoid", 100, 1.0, 0.2),
        # Half a wave from 1 to 0.2.
        ("cosine", 25, 0.25, 0.2 + 0.8 * (0.5 + math.sqrt(0.125))),
        ("cosine", 50, 0.5, 0.6),
        ("cosine", 100, 1.0, 0.2),
        ("cosine", 0, 0.0, 0.1),
        ("constant", 4, 0.5, 0.5),
        ("constant", 100, 1.0, 1.0),
    ],
)
def test_values_worked_out_by_hand(kind: str, step: int, progress: float, expected: float) -> None:
    config = ScheduleConfig.model_validate({"kind": kind, "warmup_steps": 10, "decay_share": 0.4, "final_share": 0.2})
    assert lr_factor(config, step, progress) == pytest.approx(expected, abs=1e-12)


@given(config=schedules, step=st.integers(0, 10**7), progress=st.floats(-1, 2))
def test_the_factor_stays_between_nothing_and_all(config: ScheduleConfig, step: int, progress: float) -> None:
    assert 0 <= lr_factor(config, step, progress) <= 1


@given(config=schedules, progress=st.floats(1, 2))
def test_a_run_ends_at_its_final_share(config: ScheduleConfig, progress: float) -> None:
    expected = 1.0 if config.kind == "constant" else config.final_share
    assert lr_factor(config, config.warmup_steps + 1, progress) == pytest.approx(expected, abs=1e-12)


@given(config=schedules, places=st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_after_the_warm_up_it_never_rises(config: ScheduleConfig, places: list[float]) -> None:
    factors = [lr_factor(config, config.warmup_steps + 1, place) for place in sorted(places)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(factors))


def fallen(config: ScheduleConfig, progress: float) -> float:
    if config.kind == "trapezoid":
        return min((1 - progress) / config.decay_share, 1.0)
    return 0.5 * (1 + math.cos(math.pi * progress)) if config.kind == "cosine" else 1.0


@given(config=schedules, step=st.integers(0, 10**6), progress=st.floats(0, 1))
def test_a_run_that_was_left_alone_has_the_plan_it_always_had(
    config: ScheduleConfig, step: int, progress: float
) -> None:
    """To the last bit."""
    rise = min((step + 1) / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    left = config.final_share + (1 - config.final_share) * fallen(config, progress)
    assert lr_factor(config, step, progress) == rise * (1.0 if config.kind == "constant" else left)


def moved(config: ScheduleConfig, first: int, last: int, since: Extension = WHOLE, at: int | None = None) -> Extension:
    """The plan of a run whose end is moved, from one step to another, at a step: at its first end when not given."""
    runs = [RunConfig.model_validate({"schedule": config, "train": {"steps": steps}}) for steps in (first, last)]
    return planned_since(*runs, TrainState(step=first if at is None else at), 1000, since)


@settings(deadline=None)
@given(config=schedules, first=st.integers(1, 400), more=st.integers(1, 1000), again=st.integers(1, 400))
def test_an_end_that_is_moved_is_no_jump(config: ScheduleConfig, first: int, more: int, again: int) -> None:
    """However often, from the step before to the first one with the new end, and from each to the next."""
    longest = max(1 / max(config.warmup_steps, 1), 1 / (REWARM_SHARE * more), 1 / (REWARM_SHARE * again)) + 1e-9
    since, ends = WHOLE, (first, first + more, first + more + again)
    for before, end in pairwise(ends):
        stood = lr_factor(config, before, 1.0, since)
        since = moved(config, before, end, since)
        factors = [lr_factor(config, step, step / end, since) for step in range(before, end)]
        assert all(0 <= each <= 1 for each in factors)
        assert all(after - each <= longest for each, after in pairwise([stood, *factors]))
        if since != WHOLE:
            assert lr_factor(config, end, 1.0, since) == pytest.approx(config.final_share)


def test_twice_as_long_is_planned_like_a_run_of_its_own_and_a_little_longer_is_not() -> None:
    config = ScheduleConfig(warmup_steps=20)
    twice = moved(config, 60, 120)
    factors = [lr_factor(config, step, step / 120, twice) for step in range(60, 120)]
    assert factors[0] == pytest.approx(1 / 20)
    assert factors[6:30] == pytest.approx([1.0] * 24)
    assert factors[45] == pytest.approx(0.5)
    little = moved(config, 100, 110)
    assert max(lr_factor(config, step, step / 110, little) for step in range(100, 110)) == pytest.approx(2 / 11)


@pytest.mark.parametrize(
    ("kind", "first", "last", "at"),
    [("constant", 60, 120, 60), ("trapezoid", 60, 120, 20), ("trapezoid", 60, 120, 5), ("cosine", 120, 60, 30)],
)
def test_where_the_rate_would_not_rise_the_run_is_as_one_that_was_to_end_there(
    kind: str, first: int, last: int, at: int
) -> None:
    config = ScheduleConfig.model_validate({"kind": kind, "warmup_steps": 10})
    assert moved(config, first, last, at=at) == WHOLE


def test_a_plan_is_kept_until_the_end_is_moved_again_or_its_step_is_lost() -> None:
    config = ScheduleConfig(warmup_steps=5)
    since = moved(config, 60, 120)
    assert Extension.of(since.record()) == since
    assert Extension.of({}) == WHOLE
    assert moved(config, 120, 120, since, at=80) == since
    assert moved(config, 120, 120, since, at=40) == Extension(40, 40 / 120, since.factor)

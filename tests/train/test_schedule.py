"""The learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.base.errors import UserError
from hornbook.base.settings import build
from hornbook.train.checkpoint import TrainState
from hornbook.train.config import RunConfig, ScheduleConfig
from hornbook.train.schedule import NOT_EXTENDED, REWARM_SHARE, Extension, doubts_of, lr_factor, planned_since

schedules = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(["trapezoid", "linear", "cosine", "constant"]),
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
    if config.kind == "linear":
        return 1 - progress
    return 0.5 * (1 + math.cos(math.pi * progress)) if config.kind == "cosine" else 1.0


@given(config=schedules, step=st.integers(0, 10**6), progress=st.floats(0, 1))
def test_a_run_that_was_left_alone_has_the_plan_it_always_had(
    config: ScheduleConfig, step: int, progress: float
) -> None:
    """To the last bit."""
    rise = min((step + 1) / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    left = config.final_share + (1 - config.final_share) * fallen(config, progress)
    assert lr_factor(config, step, progress) == rise * (1.0 if config.kind == "constant" else left)


def moved(
    config: ScheduleConfig, first: int, last: int, since: Extension = NOT_EXTENDED, at: int | None = None
) -> Extension:
    """The plan of a run whose end is moved, from one step to another, at a step: at its first end when not given."""
    runs = [RunConfig.model_validate({"schedule": config, "train": {"steps": steps}}) for steps in (first, last)]
    return planned_since(*runs, TrainState(step=first if at is None else at), 1000, since)


@settings(deadline=None)
@given(config=schedules, first=st.integers(1, 400), more=st.integers(1, 1000), again=st.integers(1, 400))
def test_an_end_that_is_moved_is_no_jump(config: ScheduleConfig, first: int, more: int, again: int) -> None:
    """However often, from the step before to the first one with the new end, and from each to the next."""
    longest = max(1 / max(config.warmup_steps, 1), 1 / (REWARM_SHARE * more), 1 / (REWARM_SHARE * again)) + 1e-9
    since, ends = NOT_EXTENDED, (first, first + more, first + more + again)
    for before, end in pairwise(ends):
        stood = lr_factor(config, before, 1.0, since)
        since = moved(config, before, end, since)
        factors = [lr_factor(config, step, step / end, since) for step in range(before, end)]
        assert all(0 <= each <= 1 for each in factors)
        assert all(after - each <= longest for each, after in pairwise([stood, *factors]))
        if since != NOT_EXTENDED:
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
    assert moved(config, first, last, at=at) == NOT_EXTENDED


def test_a_plan_is_kept_until_the_end_is_moved_again_or_its_step_is_lost() -> None:
    config = ScheduleConfig(warmup_steps=5)
    since = moved(config, 60, 120)
    assert Extension.of(since.record()) == since
    assert Extension.of({}) == NOT_EXTENDED
    assert moved(config, 120, 120, since, at=80) == since
    assert moved(config, 120, 120, since, at=40) == Extension(40, 40 / 120, since.factor)


STEPS = 60


def run_through(config: ScheduleConfig, steps: int = STEPS) -> list[float]:
    return [lr_factor(config, step, step / steps) for step in range(steps)]


def torchs(*schedulers: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]) -> list[float]:
    """Together they multiply."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    chain = torch.optim.lr_scheduler.ChainedScheduler([each(optimizer) for each in schedulers])
    rates = []
    for _ in range(STEPS):
        rates.append(float(chain.get_last_lr()[0]))
        optimizer.step()
        chain.step()
    return rates


def of_transformers(schedule_of: Any, **knobs: Any) -> list[float]:
    schedule = schedule_of(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), **knobs)
    return [schedule.lr_lambdas[0](step) for step in range(STEPS)]


torch_lr = torch.optim.lr_scheduler
WARM = [lambda optimizer: torch_lr.LinearLR(optimizer, 1 / 12, 1.0, total_iters=11)]
TORCHS: list[tuple[dict[str, Any], list[Any]]] = [
    ({"kind": "constant"}, []),
    ({"kind": "linear"}, [lambda optimizer: torch_lr.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)]),
    ({"kind": "cosine"}, [lambda optimizer: torch_lr.CosineAnnealingLR(optimizer, STEPS)]),
    (
        {"kind": "drop", "drop_step": 45, "final_share": 0.1},
        [lambda optimizer: torch_lr.MultiStepLR(optimizer, [45], gamma=0.1)],
    ),
    (
        {"kind": "drop", "drop_share": 0.75, "final_share": 0.1},
        [lambda optimizer: torch_lr.MultiStepLR(optimizer, [45], gamma=0.1)],
    ),
]


@pytest.mark.parametrize(("knobs", "schedulers"), TORCHS, ids=lambda each: str(each) if isinstance(each, dict) else "")
def test_factors_are_those_of_torchs_schedulers(knobs: dict[str, Any], schedulers: list[Any]) -> None:
    warm = ScheduleConfig.model_validate(knobs | {"warmup_steps": 12})
    assert run_through(warm) == pytest.approx(torchs(*WARM, *schedulers), abs=1e-12)
    assert run_through(warm.with_(warmup_steps=0))[12:] == run_through(warm)[12:]


@pytest.mark.parametrize("fall", [{"decay_steps": 24}, {"decay_share": 0.4}], ids=str)
def test_a_trapezoid_is_that_of_transformers(fall: dict[str, Any]) -> None:
    """By steps and by share alike. Its warm-up begins with a step at nothing, as ours by share does."""
    config = ScheduleConfig.model_validate(fall | {"warmup_share": 0.2, "final_share": 0.1})
    theirs = of_transformers(
        transformers.get_wsd_schedule,
        num_warmup_steps=12,
        num_decay_steps=24,
        num_training_steps=STEPS,
        decay_type="linear",
        min_lr_ratio=0.1,
    )
    ours = [each * (step + 1) / 12 if step < 12 else each for step, each in enumerate(run_through(config))]
    assert ours[12:] == pytest.approx(theirs[12:], abs=1e-12)
    assert run_through(config.with_(final_share=0.0))[:12] == pytest.approx([step / 12 for step in range(12)])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_fall_all_along_is_that_of_transformers(kind: str) -> None:
    theirs_of = {
        "linear": transformers.get_linear_schedule_with_warmup,
        "cosine": transformers.get_cosine_schedule_with_warmup,
    }[kind]
    theirs = of_transformers(theirs_of, num_warmup_steps=0, num_training_steps=STEPS)
    config = ScheduleConfig.model_validate({"kind": kind, "warmup_steps": 0})
    assert run_through(config) == pytest.approx(theirs, abs=1e-12)
    warming = of_transformers(theirs_of, num_warmup_steps=12, num_training_steps=STEPS)[:12]
    rising = [ours / fallen for ours, fallen in zip(run_through(config.with_(warmup_share=0.2)), theirs, strict=True)]
    assert rising[:12] == pytest.approx(warming, abs=1e-12)


def test_what_is_given_in_steps_follows_an_end_that_is_moved() -> None:
    """The last 20 steps are those before the new end, a share of the run is one of the new run."""
    falling = ScheduleConfig(warmup_steps=1, decay_steps=20)
    since = moved(falling, 60, 120)
    factors = [lr_factor(falling, step, step / 120, since) for step in range(60, 120)]
    assert factors[10:41] == pytest.approx([1.0] * 31)
    assert factors[50] == pytest.approx(0.5)
    dropping = ScheduleConfig(kind="drop", drop_share=0.75, warmup_steps=1, final_share=0.1)
    since = moved(dropping, 60, 120)
    factors = [lr_factor(dropping, step, step / 120, since) for step in range(60, 120)]
    assert factors[10:] == pytest.approx([1.0] * 20 + [0.1] * 30)


@pytest.mark.parametrize(
    ("knobs", "steps", "told"),
    [
        ({"warmup_steps": 40}, 60, "a warm-up of 40 in a run of 60 steps peaks at 0.775 of the learning rate; "
         "--schedule.warmup-steps 6 reaches it"),
        ({"warmup_steps": 100, "kind": "constant"}, 60, "a warm-up of 100 in a run of 60 steps peaks at 0.600"),
        ({"warmup_share": 0.9}, 60, "a warm-up of 54 in a run of 60 steps peaks at 0.556"),
        ({"warmup_steps": 4, "decay_steps": 90}, 60, "a warm-up of 4 in a run of 60 steps peaks at 0.633"),
        ({"warmup_steps": 30_000, "kind": "linear"}, 60_000, "peaks at 0.500"),
        ({"kind": "drop", "drop_step": 60, "warmup_steps": 0}, 60, "after step 60, but the run ends with step 60"),
        ({"kind": "drop", "drop_step": 59, "warmup_steps": 0}, 60, ""),
        ({"warmup_steps": 20}, 60, ""),
        ({"warmup_share": 0.2, "kind": "cosine"}, 60, ""),
        ({"warmup_steps": 60, "kind": "constant"}, 60, ""),
        ({"warmup_steps": 2000, "kind": "cosine", "final_share": 5.0}, 10_000, ""),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_schedule_cannot_do_is_doubted(knobs: dict[str, Any], steps: int, told: str) -> None:
    doubts = list(doubts_of(ScheduleConfig.model_validate(knobs), steps))
    assert len(doubts) == bool(told)
    assert all(told in doubt for doubt in doubts)


@pytest.mark.parametrize(
    ("knobs", "mistake"),
    [
        ({"kind": "drop", "drop_step": 3, "drop_share": 0.5}, r"--drop-share: says when as --schedule\.drop-step does"),
        ({"kind": "drop"}, r"--drop-step: goes with --schedule\.kind drop"),
        ({"drop_share": 0.5}, r"--drop-share: goes with --schedule\.kind drop"),
    ],
    ids=str,
)
def test_a_drop_is_given_once(knobs: dict[str, Any], mistake: str) -> None:
    with pytest.raises(UserError, match=mistake):
        build(ScheduleConfig, knobs)

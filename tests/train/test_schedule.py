"""The learning rate over a run."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hornbook.train.config import ScheduleConfig
from hornbook.train.schedule import lr_factor

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

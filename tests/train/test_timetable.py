"""Looking at a run costs it a twelfth of its time at most, and what is looked at can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effort import examples
from hornbook.infer.score import score
from hornbook.model.folder import load_model
from hornbook.runs.folder import RunFolder, resolve
from hornbook.runs.logs import evaluations, read_log
from hornbook.shards.format import Shards
from hornbook.train.config import RunConfig, TrainConfig
from hornbook.train.start import fit, resume
from hornbook.train.timetable import (
    EVALUATIONS,
    LEAST_TOKENS,
    SHARE_FOR_EVALUATIONS,
    Plan,
    planned,
    save_every_minutes,
    steps_in_all,
)


def of(batch_tokens: int, context: int = 128, **train: Any) -> RunConfig:
    return RunConfig(train=TrainConfig(steps=1, batch_tokens=batch_tokens, **train)).with_(model={"context": context})


@examples(200)
@given(
    steps=st.integers(1, 10**6),
    batch_tokens=st.integers(256, 1 << 20),
    val_tokens=st.integers(2, 10**9),
    context=st.sampled_from([32, 128, 1024]),
)
def test_evaluations_cost_their_share(steps: int, batch_tokens: int, val_tokens: int, context: int) -> None:
    """But for one, without which nothing would be known."""
    config = of(batch_tokens, context)
    pauses = planned(config, steps, val_tokens, "cpu", None)
    seen = pauses.windows * context or val_tokens
    trained = steps * config.sequences * context
    assert 1 <= pauses.evaluations <= EVALUATIONS
    assert pauses.evaluations == 1 or pauses.evaluations * seen / 3 <= SHARE_FOR_EVALUATIONS * trained
    assert seen <= val_tokens or seen <= context
    assert seen >= min(LEAST_TOKENS - context, val_tokens)


def test_of_a_long_run_all_evaluations_see_all_of_the_text() -> None:
    assert planned(of(16_384), 5_000, 110_000, "cpu", None) == Plan()


def test_of_a_short_one_few_see_a_part() -> None:
    """Nine seconds of nanoGPT's demo: ten evaluations on all of it took three quarters of the time."""
    pauses = planned(of(768, context=64), 200, 111_540, "cpu", None)
    assert (pauses.evaluations, pauses.windows, pauses.samples) == (2, 128, 3)


def test_how_many_steps_there_will_be_is_known_or_seen() -> None:
    assert steps_in_all(of(1_280, tokens=128_000), 1_000, 0, 0.0) == 1  # steps=1 is nearer
    minutes = RunConfig(train=TrainConfig(minutes=1.0))
    assert steps_in_all(minutes, 1_000, 2, 5.0) is None
    assert steps_in_all(minutes, 1_000, 3, 0.1) is None
    assert steps_in_all(minutes, 1_000, 30, 6.0) == 300


@pytest.fixture
def short(tiny: Callable[..., RunConfig]) -> RunConfig:
    """Of which evaluations see a part of the text."""
    return tiny(shards={"val_fraction": 0.2}, train={"steps": 12, "batch_tokens": 128, "keep_checkpoints": 3})


@pytest.fixture
def time_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hornbook.train.timetable.SHARE_FOR_THE_WHOLE", 1000.0)


def test_a_run_of_moments_does_not_end_in_a_long_look(short: RunConfig, tmp_path: Path) -> None:
    fit(short, tmp_path / "run")
    entries = read_log(RunFolder(tmp_path / "run").metrics)
    assert [each["step"] for each in entries if "val_loss" in each][-1] == 12
    assert not [each for each in entries if "final_val_loss" in each]


def test_the_best_is_scored_on_all_of_the_text_at_the_end(
    short: RunConfig, tmp_path: Path, time_at_the_end: None
) -> None:
    fit(short, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    entries = read_log(run.metrics)
    *part, whole = evaluations(entries)
    shards = Shards.open(run.record().shards)
    val = shards.split("val")
    assert {each["val_tokens"] for each in part} == {LEAST_TOKENS // 32 * 32}
    assert whole["val_tokens"] == len(val) - 1 > LEAST_TOKENS
    judged = score(load_model(resolve(run.path)), val, 32, shards.bytes_of_text("val"))
    assert whole["val_loss"] == pytest.approx(judged.loss, rel=1e-6)
    assert whole["step"] == 12


def test_of_a_run_that_got_worse_the_best_is_scored(
    short: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_at_the_end: None
) -> None:
    monkeypatch.setattr("hornbook.train.loop.lr_factor", lambda _config, step, *_: 1.0 if step < 30 else 1000.0)
    fit(short.with_(train={"steps": 60, "batch_tokens": 2048}), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    *part, whole = evaluations(read_log(run.metrics))
    assert [each["step"] for each in part] == [30, 60]
    assert whole["step"] == 30
    shards = Shards.open(run.record().shards)
    judged = score(load_model(resolve(run.path)), shards.split("val"), 32, shards.bytes_of_text("val"))
    assert whole["val_loss"] == pytest.approx(judged.loss, rel=1e-6)


def test_a_run_that_is_extended_goes_on_with_the_same_part(
    short: RunConfig, tmp_path: Path, time_at_the_end: None
) -> None:
    fit(short, tmp_path / "run")
    resume(tmp_path / "run", {"train": {"steps": 24}})
    entries = read_log(RunFolder(tmp_path / "run").metrics)
    assert len({each["val_tokens"] for each in entries if "val_loss" in each}) == 1
    assert [each["step"] for each in entries if "final_val_loss" in each] == [24]


def test_a_run_that_is_done_has_its_last_line_however_often_it_is_resumed(
    short: RunConfig, tmp_path: Path, time_at_the_end: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was killed before that was written."""
    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("hornbook.train.loop.evaluate_whole", lambda _: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            fit(short, run.path)
    for _ in range(2):
        assert resume(run.path).reason == "nothing left to do"
        (last,) = [each for each in read_log(run.metrics) if "final_val_loss" in each]
        assert last["step"] == 12


def test_who_says_on_how_much_has_it_so(short: RunConfig, tmp_path: Path) -> None:
    fit(short.with_(train={"eval_every_steps": 6}), tmp_path / "run")
    entries = read_log(RunFolder(tmp_path / "run").metrics)
    assert len({each["val_tokens"] for each in entries if "val_loss" in each}) == 1
    assert not [each for each in entries if "final_val_loss" in each]


def test_a_small_model_is_saved_each_minute_and_a_large_one_each_fifth() -> None:
    small, large = (of(1024).with_(model={"n_embd": width, "vocab_size": 257}) for width in (64, 1024))
    assert [save_every_minutes(each) for each in (small, large)] == [1, 5]
    assert save_every_minutes(small.with_(train={"save_every_steps": 9})) == math.inf
    assert save_every_minutes(large.with_(train={"save_every_steps": 9, "save_every_minutes": 2})) == 2

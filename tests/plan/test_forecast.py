"""What is told of a run beforehand."""

from __future__ import annotations

import json
import random
import re
import zlib
from pathlib import Path
from typing import Any

import h5py
import pytest

from hornbook import cli
from hornbook.base.errors import UserError
from hornbook.plan import forecast as plan
from hornbook.plan.forecast import Forecast, forecast
from hornbook.recipes import compose
from hornbook.train.loop import INTERRUPTED
from hornbook.train.probe import Timed
from hornbook.train.start import Outcome


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a machine that takes a tenth of a second for a step."""
    monkeypatch.setattr(plan, "seconds_a_step", lambda config, machine: Timed(0.1, 0.0))
    monkeypatch.setattr("hornbook.train.probe.flops", lambda machine: 1e11)
    path = tmp_path / "some.txt"
    path.write_text("".join(f"the {number % 97} birds of {number * 7919 % 1009} trees\n" for number in range(20_000)))
    return str(path)


@pytest.mark.parametrize(
    ("end", "steps"),
    [({"minutes": 2}, 1116), ({"steps": 70}, 70), ({"tokens": 70 * 1024 - 5}, 70), ({"minutes": 2, "steps": 9}, 9)],
    ids=str,
)
def test_it_ends_where_the_first_of_its_ends_is(text: str, end: dict[str, Any], steps: int) -> None:
    found = forecast(None, {"data": text, "train": end | {"batch_tokens": 1024}, "model": {"context": 64}})
    assert found.steps == steps
    assert found.tokens == 1024 * steps
    assert found.seconds == pytest.approx(0.1 * steps / plan.LEARNING)
    assert found.readings == pytest.approx(3 * found.tokens / Path(text).stat().st_size)


def test_the_harder_the_text_and_the_shorter_the_run_the_higher_the_loss(text: str, tmp_path: Path) -> None:
    def bits(data: str, minutes: float) -> float:
        found = forecast(None, {"data": data, "train": {"minutes": minutes}}).bits_per_byte
        assert found is not None
        return found

    harder = tmp_path / "harder.txt"
    whole = Path(text).read_text()
    harder.write_text("".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=300_000)))
    assert bits(text, 2) < bits(text, 0.5)
    assert bits(text, 2) < bits(str(harder), 2)
    alone = 8 * len(zlib.compress(whole.encode(), 9)) / len(whole.encode())
    assert 0.1 * alone < bits(text, 2) < 10 * alone


def test_of_ids_from_elsewhere_no_loss_is_foretold(text: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        file["tokens"] = [1, 2, 50_256] * 1000
    knobs = {"data": str(tmp_path / "ids.h5"), "tokenizer": {"kind": "byte"}, "train": {"steps": 9}}
    assert forecast(None, knobs).between is None


def test_it_is_told_and_nothing_is_written(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = ["plan", "--data", text, "--minutes", "2", "--train.device", "cpu"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()] == [
        "model",
        "machine",
        "training",
        "time",
        "memory",
        "loss",
        "more",
    ]
    assert cli.main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    low, high = facts["between"]
    assert f"{low:.2f} to {high:.2f} bits per byte" in told
    assert facts["config"]["train"]["minutes"] == 2
    assert facts["memory_bytes"] > 4 * 4 * 100_000
    assert sorted(tmp_path.rglob("*")) == before


def test_a_machine_with_other_work_is_named_before_its_figures_are_believed(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--data", text, "--minutes", "2", "--train.device", "cpu", "--out", "runs/as-for-train"]
    for waited, is_told in ((0.01, False), (0.05, True)):
        monkeypatch.setattr(plan, "seconds_a_step", lambda config, machine, waited=waited: Timed(0.1, waited))
        assert cli.main(words) == 0
        said = capsys.readouterr().out
        assert ("something else is at work on this machine: 50% of a step" in said) == is_told


@pytest.mark.parametrize(
    ("minutes", "end"),
    [
        (1.0, "twice the time (--minutes 2) would bring about"),
        (6.0, "next to nothing, more text would"),
        (600.0, "only learn it by heart"),
    ],
)
def test_it_is_told_in_a_line_before_the_training(text: str, minutes: float, end: str) -> None:
    found = forecast(None, {"data": text, "train": {"minutes": minutes}})
    told = found.in_a_line()
    assert f"after {found.steps:,} steps and" in told
    assert end in told
    if (more := found.with_more(2)) is not None:
        assert found.between is not None
        assert f"at {found.between[0]:.2f} to {found.between[1]:.2f} bits per byte" in told
        assert found.bits_per_byte is not None
        assert 0.8 * found.bits_per_byte < more <= found.bits_per_byte


def test_of_a_text_that_is_not_known_no_loss_is_told() -> None:
    """And not that more time would be of no use."""
    config = compose(None, {"data": "shakespeare", "train": {"minutes": 1}})
    found = Forecast(config, "", 0.1, 0.0, 600, 60.0, 10**6, 1.0, 10**6, difficulty=None)
    assert found.with_more(2) is None
    assert found.in_a_line().endswith("and 1 epochs")


def test_training_for_minutes_begins_with_what_is_expected(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a text alone, ten minutes are meant."""
    monkeypatch.setattr(
        "hornbook.train.start.fit", lambda config, out, **_: Outcome(out, INTERRUPTED, 0, 0, 0, None, 0)
    )
    monkeypatch.setattr("hornbook.report.curves.draw", lambda run: [])
    monkeypatch.setattr("hornbook.report.run_page.write_report", lambda run: (run / "report.html", []))
    for words, minutes in (([], "10"), (["--minutes", "3"], "3"), (["--train.steps", "2"], None)):
        assert cli.main(["train", text, *words, "--out", str(tmp_path / "run"), "--train.device", "cpu"]) == 130
        told = capsys.readouterr().out
        by = "this machine and its time" if minutes else "a plain machine"
        assert told.startswith(f"sizes chosen for the text{',' if minutes else ' and'} {by}: ")
        found = re.search(r"(\d+) minutes; --minutes", told)
        assert (found and found[1]) == minutes
        assert ("expected: done in" in told) == (minutes is not None)


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"data": "-"}, "standard input"),
        ({"data": "python-stdlib", "train": {"target_loss": 1.0}}, "give --minutes"),
    ],
)
def test_what_cannot_be_foreseen_is_refused(knobs: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        forecast(None, knobs)


def test_the_steps_that_are_timed_are_those_of_the_run() -> None:
    """The true probe, once, on the smallest model."""
    found = forecast("demo", {"train": {"steps": 3, "device": "cpu"}}, tiny=True)
    assert 0 < found.seconds_a_step < 10
    assert found.bits_per_byte is not None

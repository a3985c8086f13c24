from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hornbook.base import console
from hornbook.base.console import Progress, command, count, duration, program, shell, table, warn
from hornbook.base.errors import one_line


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_without_a_terminal_progress_is_plain_lines_now_and_then(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        for step in range(25):
            progress.update(f"step {step}")
            clock.now += 1
        progress.note("saved")
    lines = stream.getvalue().splitlines()
    assert lines[-2:] == ["saved", "step 24"]
    assert 3 <= len(lines) <= 5
    assert "\r" not in stream.getvalue()


def test_a_plain_line_is_not_said_twice(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.update("done")
    assert stream.getvalue() == "done\n"


def screen(written: str) -> list[str]:
    """What a terminal shows after `written`."""
    lines = [""]
    for part in written.split("\n"):
        for piece in part.split("\r"):
            lines[-1] = piece + lines[-1][len(piece) :]
        lines.append("")
    return [line.rstrip() for line in lines]


def test_on_a_terminal_one_line_is_drawn_over_and_notes_stay_above_it(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(stream, live=True) as progress:
        for text in ("a long first line", "short"):
            progress.update(text)
            clock.now += 1
        assert screen(stream.getvalue())[0] == "short"
        progress.note("saved")
        progress.update("last")
    assert screen(stream.getvalue())[:2] == ["saved", "last"]


def test_a_live_line_keeps_to_the_terminals_width(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    with Progress(stream, live=True) as progress:
        progress.update("x" * 100)
    assert len(stream.getvalue().strip()) == 39


def test_a_live_line_is_not_drawn_oftener_than_eyes_can_see(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream, live=True)
    for step in range(1_000):
        progress.update(str(step))
        clock.now += 0.001
    assert stream.getvalue().count("\r") <= 11


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (1234, "1.23k"), (999_999, "1M"), (1_234_567, "1.23M"),
     (124_000_000, "124M"), (3.5e9, "3.5G"), (2e12, "2T"), (0.5, "0.5"), (999.7, "1k"), (-1500, "-1.5k")],
)  # fmt: skip
def test_counts_are_short(number: float, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (61, "1m01s"), (3599.7, "1h00m"), (4000, "1h06m"),
     (360_000, "100h00m")],
)  # fmt: skip
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_columns_of_numbers_go_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    table(["name", "size"], [["a", "1"], ["longer name", "2,200"]], right=[1])
    assert capsys.readouterr().out.splitlines() == [
        "name          size",
        "a                1",
        "longer name  2,200",
    ]


def test_a_table_without_a_terminal_is_columns(capsys: pytest.CaptureFixture[str]) -> None:
    table(["name", "size"], [["a", "1"], ["longer name", "22"]])
    assert capsys.readouterr().out.splitlines() == ["name         size", "a            1", "longer name  22"]


def test_a_warning_is_one_line_beside_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    warn("two\nlines")
    assert capsys.readouterr() == ("", "warning: two lines\n")


NAMES = [
    "plain",
    "My Novel (draft)",
    "it's",
    "a$b`c",
    "two  blanks",
    " ends ",
    "a\tb\nc\x1b",
    "caf\udce9",
    "\\'",
    "é 红",
    "-x",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_command_is_read_back_by_a_shell_as_it_was_meant(name: str) -> None:
    bash = shutil.which("bash") or pytest.skip("no bash here")
    told = command("resume", Path("runs") / name)
    assert told.startswith("hornbook resume ")
    for line in (shell("printf", "%s|", name, "end"), one_line(shell("printf", "%s|", name, "end"))):
        read = subprocess.run([bash, "-c", os.fsencode(line)], capture_output=True, check=True).stdout
        assert read == os.fsencode(name) + b"|end|"
        assert line.isprintable()


def test_what_a_user_types_next_is_what_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = [tmp_path / place / "hornbook" for place in ("here/.venv/bin", "else where")]
    for script in scripts:
        script.parent.mkdir(parents=True)
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sys.argv", [str(scripts[0])])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == ".venv/bin/hornbook"
    monkeypatch.setenv("PATH", str(scripts[1].parent))
    assert program() == ".venv/bin/hornbook"
    monkeypatch.setenv("PATH", str(scripts[0].parent))
    assert program() == "hornbook"
    monkeypatch.setattr("sys.argv", [str(scripts[1])])
    answer = subprocess.run(["/bin/sh", "-c", f"command -v {program()}"], capture_output=True, text=True, check=True)
    assert answer.stdout.strip().endswith("else where/hornbook")
    monkeypatch.setattr("sys.argv", ["a notebook"])
    assert program() == "hornbook"

"""Output that nobody reads, that lacks the letters, or that ends in a terminal."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from hornbook.base import output
from hornbook.base.console import Progress, say, warn
from hornbook.base.output import (
    Flowing,
    OutputLostError,
    answer,
    answer_json,
    going_on,
    laid_out,
    painted,
    put,
    settle,
    tell,
    visible,
)


class Lost(io.RawIOBase):
    """A file that cannot be written."""

    def __init__(self, number: int) -> None:
        self.number = number

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        return len(data)


@pytest.fixture
def broken() -> Iterator[TextIO]:
    """A pipe whose reader has left."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        yield stream


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("over\rwritten\b\x7f\0", "over\\x0dwritten\\x08\\x7f\\x00"),
        ("\tname\nñandú 名 👩\u200d🔬", "\tname\nñandú 名 👩\u200d🔬"),
    ],
)
def test_what_is_said_does_not_steer_a_terminal(
    said: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert visible(said) == "".join(map(visible, said)) == shown
    monkeypatch.setattr("hornbook.base.console.LIVE_EVERY_SECONDS", 0.0)
    say(said)
    stream = io.StringIO()
    with Progress(stream, live=True) as progress:
        progress.note(said)
        progress.update(said)
    assert shown in capsys.readouterr().out
    assert stream.getvalue().count(shown) == 2
    warn(said.replace("\n", " ").replace("\t", " ").strip())
    assert visible(err := capsys.readouterr().err) == err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_the_output_lacks_are_replaced(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_written, encoding, errors="strict"))
    say("é名\udce9.")
    expected = {"ascii": b"???.\n", "latin-1": b"\xe9??.\n", "utf-8": "é名?.\n".encode()}
    assert bytes_written.getvalue() == expected[encoding]
    answer_json({"é": "名\x9b\x7f"})  # for a script, nothing is lost
    line = bytes_written.getvalue().splitlines()[1].decode(encoding)
    assert json.loads(line) == {"é": "名\x9b\x7f"}
    assert visible(line) == line


def test_work_goes_on_when_its_reader_has_left(
    broken: TextIO, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", broken)
    with going_on(), Progress() as progress:
        say("one")
        progress.note("two")
        progress.update("three")
    settle()
    assert capsys.readouterr().err == "warning: standard output: Broken pipe; going on without it\n"
    broken.flush()  # as Python does at its end


def test_an_answer_that_cannot_be_handed_over_ends_the_command(broken: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", broken)
    for hand_over in (answer, say):
        with pytest.raises(OutputLostError) as lost:
            hand_over("text")
        assert lost.value.is_gone
    output.discard(broken)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_disk_without_room_is_no_reader_that_left(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lost_file = Lost(number)
    stream = io.TextIOWrapper(io.BufferedWriter(lost_file))
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(OutputLostError, match=os.strerror(number)) as lost:
        answer("text")
    assert not lost.value.is_gone
    monkeypatch.undo()
    lost_file.number = 0  # or it could not be closed


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_an_output_that_is_not_there_is_done_without(stream: TextIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    with going_on(), Progress() as progress:
        say("one")
        progress.note("two")
    settle()


def test_a_line_that_was_begun_ends_before_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    put("hi")
    tell("error: no")
    tell("error: nor this")
    assert capsys.readouterr() == ("hi\n", "error: no\nerror: nor this\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


LONG = "data      my-text: 137k tokens to train on, 16.2k to validate, a vocabulary of 512 entries"


def test_a_terminal_gets_lines_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    broken = laid_out(f"{LONG}\nshort", Terminal())
    lines = broken.splitlines()
    assert max(map(len, lines)) < 40
    assert broken.split() == f"{LONG} short".split()
    assert all(line.startswith(" " * 10) for line in lines[1:-1])
    command = "  hornbook resume runs/a-run-with-a-long-name --train.minutes 20"
    path = f"picture   {'x' * 60}"
    assert laid_out(command, Terminal()) == command  # to be copied
    assert laid_out(path, Terminal()).split() == path.split()
    assert laid_out(LONG, io.StringIO()) == LONG


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_text_that_comes_in_pieces_is_broken_between_words(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    text = "Once upon a time there was a very small model.\n\nIt read little, " + "and " * 20 + "長" * 60
    flowing, plain = Flowing(Terminal()), Flowing(io.StringIO())
    pieces = [text[place : place + size] for place in range(0, len(text), size)]
    shown = "".join([*map(flowing.feed, pieces), flowing.end()])
    lines = shown.partition("長")[0].splitlines()
    assert max(map(len, lines)) <= 30
    assert shown.partition("長")[0].split() == text.partition("長")[0].split()
    assert shown.count("長") == 60
    assert "".join([*map(plain.feed, pieces), plain.end()]) == text


def test_a_terminal_gets_colours_unless_somebody_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    red = painted("error: no such file", Terminal())
    assert re.fullmatch("\x1b\\[1;31merror:\x1b\\[0m no such file", red)
    assert painted("loss 3.2 error: x", Terminal()) == "loss 3.2 error: x"
    assert painted("error: no such file", io.StringIO()) == "error: no such file"
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            assert painted("error: no such file", Terminal()) == "error: no such file"

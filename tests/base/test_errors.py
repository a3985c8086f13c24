from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from effort import examples
from hornbook.base.console import command
from hornbook.base.errors import LONGEST_LINE, MachineError, UserError, one_line


@examples(1_000)
@given(st.text(max_size=1_000))
def test_any_mistake_becomes_one_short_line(text: str) -> None:
    line = one_line(text)
    assert len(line) <= LONGEST_LINE
    assert len(line.splitlines()) <= 1
    assert line.isprintable()
    if text.isprintable():
        assert line.split() == text.split() or len(" ".join(text.split())) > LONGEST_LINE


def test_what_a_terminal_would_act_on_is_spelled() -> None:
    assert one_line("no file \x1b[2J\x07 or \ud800") == "no file \\x1b[2J\\x07 or \\ud800"


def test_a_long_line_keeps_its_beginning_and_its_mend() -> None:
    line = one_line("runs/" + "x" * 500 + ": damaged; prepare the text again")
    assert line.startswith("runs/x")
    assert line.endswith("damaged; prepare the text again")


def test_long_paths_are_shortened_before_words_are_lost() -> None:
    path = "/home/" + "/".join("a-rather-long-folder" for _ in range(8)) + "/runs/mine"
    line = one_line(f"{path}: another process is at work in {path} or was so lately")
    assert line == ".../runs/mine: another process is at work in .../runs/mine or was so lately"


def test_a_command_at_the_end_stays_as_it_is_to_be_typed() -> None:
    path = "/home/" + "/".join("a-rather-long-folder" for _ in range(4)) + "/runs/my novel"
    line = one_line(f"{path}: holds a run already; choose another --out, or go on: {command('resume', path)}")
    assert len(line) <= LONGEST_LINE
    assert line.endswith(f": hornbook resume '{path}'")


def test_each_mistake_keeps_its_own_line_and_the_exit_code_tells_whose_it_was() -> None:
    error = UserError("first", "sec\nond")
    assert error.mistakes == ["first", "sec ond"]
    assert str(error).splitlines() == error.mistakes
    assert (error.exit_code, MachineError("disk").exit_code) == (2, 1)

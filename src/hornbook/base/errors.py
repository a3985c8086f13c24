"""Mistakes that have a mend.

In: what is wrong, where, and what to do about it.  Out: one line each, and an exit code.
Anything that is not one of these is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

LONGEST_LINE = 200
LONG_PATH = 40


class HornbookError(Exception):
    """Something that the reader can act on, one line per mistake."""

    exit_code = 1

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = [one_line(mistake) for mistake in mistakes]
        super().__init__("\n".join(self.mistakes))


class UserError(HornbookError):
    """The input was at fault: a knob, a file, a text."""

    exit_code = 2


class MachineError(HornbookError):
    """The machine was at fault: a full disk, a failing device."""


def folded(text: str) -> str:
    """In one line, with what a terminal would act on or cannot show spelt out."""
    words = (word if word.isprintable() else word.encode("unicode_escape").decode() for word in text.split())
    return " ".join(words)


def one_line(text: str) -> str:
    """Folded, and where that is too long, with long paths shortened to their ends, then the whole from its middle. From
    the left on, since a command to be typed stands last; what is quoted in it stays."""
    line = folded(text)
    words = line.split(" ")
    for place, word in enumerate(words):
        if len(line) > LONGEST_LINE and len(word) > LONG_PATH and "'" not in word:
            words[place] = _end_of_path(word)
            line = " ".join(words)
    if len(line) > LONGEST_LINE:
        keep = LONGEST_LINE - 5
        line = f"{line[: keep // 3]} ... {line[-(keep - keep // 3) :]}"
    return line


def _end_of_path(word: str) -> str:
    parts = word.split("/")
    return "/".join(["...", *parts[-2:]]) if len(parts) > 3 else word

"""Standard output and standard error, which may be less than they seem.

In: text.  Out: the same, where somebody reads it. A reader that has gone, a terminal that was closed and an encoding
without the letter end no work; and what others wrote does not steer a terminal.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, TextIO

# What moves a cursor, rings, or begins a command: all controls but the line's end and the tab, as they are spelt out.
STEERING = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
# Those that JSON lets stand.
STEERING_IN_JSON = {code: f"\\u{code:04x}" for code in range(127, 160)}
# By the word with which a line begins, as terminals know colours.
COLORS = {"error:": "1;31", "warning:": "1;33", "note:": "36", "next:": "1;32", "expected:": "36", "---": "2"}
LONGEST_WORD = 24
# The reader went away, as `head` does, or the terminal was closed.
GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO}

_going_on = 0  # how deep in work that is worth more than to be told of
_begun: TextIO | None = None  # on which a line stands that has no end yet
_silent_as: str | None = None  # by which name this process tells of its errors, and of nothing else


class OutputLostError(Exception):
    """What was asked for cannot be handed over."""

    def __init__(self, error: OSError) -> None:
        self.is_gone = error.errno in GONE
        super().__init__(f"standard output: {error.strerror}")


def visible(text: str) -> str:
    """What a model or a file says, without power over the terminal: its controls are spelt out."""
    return text.translate(STEERING)


@contextlib.contextmanager
def going_on() -> Iterator[None]:
    """Work that nobody has to listen to, such as a training: within, an output that is lost ends nothing."""
    global _going_on
    _going_on += 1
    try:
        yield
    finally:
        _going_on -= 1


def is_going_on() -> bool:
    return _going_on > 0


def be_silent(name: str) -> None:
    """Of several processes at one work, one tells of it; the others say no more than what is wrong with them."""
    global _silent_as
    _silent_as = name


def put(text: str, stream: TextIO | None = None) -> None:
    """Tell of the work, at once. Where nobody can be told any more, the work goes on without."""
    stream = stream or sys.stdout
    try:
        _write(stream, text)
    except BlockingIOError:
        pass  # a pipe that does not wait is full; the next line may find room
    except (OSError, ValueError) as error:
        _lose(stream, error)


def answer(text: str) -> None:
    """Hand over what was asked for. Where that fails, there is nothing left to do for the command."""
    try:
        _write(sys.stdout, text)
    except OSError as error:
        raise OutputLostError(error) from error


def answer_json(value: Any) -> None:
    """A line of it, for a script: in the output's own letters where it has them all, so that none is lost."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(value)
    answer(line.translate(STEERING_IN_JSON) + "\n")


def tell(text: str) -> None:
    """A line beside the output. One that was begun there ends first."""
    fresh_line()
    put(painted(laid_out(visible(text), sys.stderr), sys.stderr) + "\n", sys.stderr)


def tell_mistake(text: str) -> None:
    """What ends the work; also of a process that is silent otherwise."""
    global _silent_as
    name, _silent_as = _silent_as, None
    tell(f"error: {name or ''}{text}")
    _silent_as = name


def is_terminal(stream: TextIO | None) -> bool:
    """Also of one that was closed, or never there."""
    return stream is not None and not stream.closed and stream.isatty()


def laid_out(text: str, stream: TextIO | None) -> str:
    """Lines that are longer than a terminal is wide are broken between words, and go on below where they began; one
    that is a command stays whole, to be copied. Elsewhere nothing is broken."""
    if not is_terminal(stream):
        return text
    width = shutil.get_terminal_size().columns
    lines = text.split("\n")
    return "\n".join(line if len(line) <= width or _is_command(line) else _wrapped(line, width) for line in lines)


def _wrapped(line: str, width: int) -> str:
    label = re.match(r"\s*\S+\s{2,}|\s*", line)  # of a row such as `data      my-text.txt`
    indent = " " * min(len(label[0]) if label else 0, width // 3)
    return textwrap.fill(
        line,
        max(width - 1, 20),
        subsequent_indent=indent or "  ",
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )


class Flowing:
    """A text that comes in pieces, broken between words where a terminal ends; a word is shown when it is whole."""

    def __init__(self, stream: TextIO | None) -> None:
        self._width = shutil.get_terminal_size().columns if is_terminal(stream) else 0
        self._column, self._word = 0, ""

    def feed(self, text: str) -> str:
        if not self._width:
            return text
        shown = ""
        for part in re.findall(r"\s|\S+", text):
            if part.isspace():
                shown += self.end() + part
                self._column = 0 if part == "\n" else self._column + 1
            else:
                self._word += part
                if len(self._word) > LONGEST_WORD:  # there are scripts without blanks
                    shown += self.end()
        return shown

    def end(self) -> str:
        word, self._word = self._word, ""
        if self._column > 0 and self._column + len(word) >= self._width:
            self._column = len(word)
            return "\n" + word
        self._column += len(word)
        return word


def _is_command(line: str) -> bool:
    return re.match(r"\s+(\S*/)?hornbook ", line) is not None


def painted(text: str, stream: TextIO | None) -> str:
    """What a line is, in colour, where there is a terminal that has some and nobody asked for none (NO_COLOR)."""
    kind = text.partition(" ")[0]
    if kind not in COLORS or not is_terminal(stream) or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{COLORS[kind]}m{kind}\x1b[0m{text.removeprefix(kind)}"


def fresh_line() -> None:
    if _begun is not None:
        put("\n", _begun)


def settle() -> None:
    """What is held back goes out, or nowhere: at Python's own end it would cost the exit code (120)."""
    for stream in (sys.stdout, sys.stderr):
        put("", stream)


def discard(stream: TextIO) -> None:
    """Whatever goes there from now on, and what it still holds, goes nowhere."""
    global _begun
    if stream is _begun:
        _begun = None
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def _write(stream: Any, text: str) -> None:
    """Unless this process is silent. Through a stream that may be missing (`>&-`), or have no such letters (LANG=C):
    they become question marks."""
    global _begun
    if stream is None or _silent_as is not None:
        return
    try:
        stream.write(text)
    except UnicodeEncodeError:
        stream.write(text.encode(stream.encoding, "replace").decode(stream.encoding))
    stream.flush()
    if text:
        _begun = None if text.endswith("\n") else stream


def _lose(stream: TextIO, error: OSError | ValueError) -> None:
    """Once: afterwards there is nothing that could fail."""
    is_output = stream is sys.stdout
    discard(stream)
    if is_output and isinstance(error, OSError):
        put(f"warning: standard output: {error.strerror}; going on without it\n", sys.stderr)

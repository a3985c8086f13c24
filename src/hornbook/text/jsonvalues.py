"""The values in a long JSON text, one at a time.

In: chunks of the text.  Out: the source of each element of its outermost array, or of each value where they stand one
after another, with the line on which it begins. Only brackets and quotes are looked at: an element that is wrong
inside is given out as it is, so that it can be told, or passed over, and the next one read. `parsed` makes a value of
such a source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from hornbook.text.streams import LARGEST_RECORD, Trouble, brief

_OUTSIDE = re.compile(r'["\[\]{},]')
_IN_STRING = re.compile(r'["\\]')


class _Scanner:
    """Where in the text we are: `held` from `start` on, which is on `line`, is the value under way; `at` is how far was
    looked."""

    def __init__(self) -> None:
        self.held = ""
        self.start = self.at = self.depth = self.values = 0
        self.line = 1
        self.quoted = self.closed = False
        self.in_array: bool | None = None

    def add(self, chunk: str) -> None:
        rest = self.held[self.start :].lstrip()
        self._go_to(len(self.held) - len(rest))
        if len(rest) > LARGEST_RECORD:
            raise Trouble(f"an element longer than {LARGEST_RECORD >> 20} MB", f"line {self.line}")
        self.held = rest + chunk
        self.at, self.start = max(self.at - self.start, 0), 0

    def scan(self) -> Iterator[tuple[int, str]]:
        """The values that are whole by now."""
        while mark := (_IN_STRING if self.quoted else _OUTSIDE).search(self.held, self.at):
            sign, self.at = mark[0], mark.end()
            if sign == "\\":
                self.at += 1  # whatever comes next, and be it in the next chunk
            elif sign == '"':
                self.quoted = not self.quoted
                if not self.quoted and self.depth == 0 and not self.in_array:
                    yield self._take(self.at)
            elif sign in "[{":
                if self.in_array is None and sign == "[" and self._is_blank(mark.start()):
                    self._go_to(self.at)
                    self.in_array = True
                    continue
                self.depth += 1
            elif sign in "]}":
                self.depth -= 1
                if self.in_array and self.depth < 0:
                    yield from self._close(mark.start(), sign)
                elif not self.in_array and self.depth <= 0:
                    self.depth = 0
                    yield self._take(self.at)
            elif self.depth == 0 and self.in_array:
                yield self._take(mark.start())
                self.start = self.at
        self.at = max(self.at, len(self.held))

    def end(self) -> Iterator[tuple[int, str]]:
        if self.in_array:
            raise self.trouble("ends within its array; it was cut off")
        if not self._is_blank(len(self.held)):
            yield self._take(len(self.held))

    def trouble(self, what: str) -> Trouble:
        return Trouble(f"not JSON ({what})", f"line {self.line + self.held.count(chr(10), self.start, self.at)}")

    def _take(self, end: int) -> tuple[int, str]:
        source = self.held[self.start : end].lstrip()
        self._go_to(end - len(source))
        if self.closed:
            raise Trouble("not JSON (something follows the end of the array)", f"line {self.line}")
        line = self.line
        self._go_to(end)
        self.in_array = bool(self.in_array)
        self.values += 1
        return line, source.rstrip()

    def _close(self, end: int, sign: str) -> Iterator[tuple[int, str]]:
        if sign == "}":
            raise self.trouble("a } that closes nothing")
        if self.values or not self._is_blank(end):
            yield self._take(end)
        self._go_to(self.at)
        self.depth, self.in_array, self.closed = 0, False, True

    def _is_blank(self, end: int) -> bool:
        return not self.held[self.start : end].strip()

    def _go_to(self, place: int) -> None:
        self.line += self.held.count("\n", self.start, place)
        self.start = place


def json_values(chunks: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(line, source) of each value."""
    scanner = _Scanner()
    for chunk in chunks:
        scanner.add(chunk)
        yield from scanner.scan()
    yield from scanner.end()


def parsed(source: str) -> Any:
    """The value that a text is, or trouble."""
    try:
        return json.loads(source)
    except json.JSONDecodeError as error:
        raise Trouble(f"not JSON ({error.msg}: column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else brief(error)
        raise Trouble(f"not JSON that can be read ({what})") from None


def kind_of(value: Any) -> str:
    """What it is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {int: "a number", float: "a number", str: "a string", list: "an array"}.get(type(value), "an object")

"""The values in a long JSON text, one at a time.

In: chunks of the text.  Out: the source of each element of its outermost array, or of each value where they stand one
after another, with the line on which it begins. Only brackets and quotes are looked at: an element that is wrong
inside is given out as it is, so that it can be told, or passed over, and the next one read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from hornbook.text.streams import LARGEST_RECORD, Trouble

_OUTSIDE = re.compile(r'["\[\]{},]')
_IN_STRING = re.compile(r'["\\]')


class _Scanner:
    """Where in the text we are. `start` is the begin of the value under way, `at` how far it was looked through."""

    def __init__(self) -> None:
        self.held = ""
        self.start = self.at = self.depth = self.values = 0
        self.line, self.counted = 1, 0
        self.quoted = self.closed = False
        self.in_array: bool | None = None

    def add(self, chunk: str) -> None:
        self.line += self.held.count("\n", self.counted, self.start)
        self.held = self.held[self.start :] + chunk
        self.at -= self.start
        self.start = self.counted = 0
        if len(self.held) > LARGEST_RECORD + len(chunk):
            raise Trouble(f"an element longer than {LARGEST_RECORD >> 20} MB", f"line {self.line}")

    def scan(self) -> Iterator[tuple[int, str]]:
        """The values that are whole by now."""
        while mark := (_IN_STRING if self.quoted else _OUTSIDE).search(self.held, self.at):
            sign, self.at = mark[0], mark.end()
            if sign == "\\":
                if self.at == len(self.held):
                    self.at -= 1
                    return
                self.at += 1
            elif sign == '"':
                self.quoted = not self.quoted
                if not self.quoted and self.depth == 0 and not self.in_array:
                    yield self._take(self.at)
            elif sign in "[{":
                if self.in_array is None and sign == "[" and not self.held[self.start : mark.start()].strip():
                    self.in_array, self.start = True, self.at
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

    def _take(self, end: int) -> tuple[int, str]:
        if self.closed:
            raise self.trouble("something follows the end of the array")
        source = self.held[self.start : end]
        begin = self.start + len(source) - len(source.lstrip())
        self.line += self.held.count("\n", self.counted, begin)
        self.counted = max(begin, self.counted)
        if self.in_array is None:
            self.in_array = False
        self.start = end
        self.values += 1
        return self.line, source.strip()

    def _close(self, end: int, sign: str) -> Iterator[tuple[int, str]]:
        if sign == "}":
            raise self.trouble("a } that closes nothing")
        if self.held[self.start : end].strip() or self.values:
            yield self._take(end)
        self.start, self.depth, self.in_array, self.closed = self.at, 0, False, True

    def end(self) -> Iterator[tuple[int, str]]:
        rest = self.held[self.start :].strip()
        if self.in_array:
            raise self.trouble("ends within its array; it was cut off")
        if rest:
            yield self._take(len(self.held))

    def trouble(self, what: str) -> Trouble:
        return Trouble(f"not JSON ({what})", f"line {self.line + self.held.count(chr(10), self.counted, self.at)}")


def json_values(chunks: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(line, source) of each value."""
    scanner = _Scanner()
    for chunk in chunks:
        scanner.add(chunk)
        yield from scanner.scan()
    yield from scanner.end()

"""What the user sees while work goes on.

In: facts as they come.  Out: a live line on a terminal, plain lines elsewhere, an updated cell in a notebook.
Rich is imported only where there is a terminal to draw on.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from hornbook.base.errors import folded
from hornbook.base.output import answer, fresh_line, is_going_on, is_terminal, laid_out, painted, put, tell, visible

PLAIN_EVERY_SECONDS = 10.0
LIVE_EVERY_SECONDS = 0.1


def say(text: str = "") -> None:
    """Lines, fit for the terminal where there is one."""
    lines = (painted(line, sys.stdout) for line in laid_out(visible(text), sys.stdout).split("\n"))
    (put if is_going_on() else answer)("\n".join(lines) + "\n")


def warn(text: str) -> None:
    tell(f"warning: {folded(text)}")


def note(text: str) -> None:
    """What is good to know, beside what was asked for."""
    tell(f"note: {folded(text)}")


def in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return bool(shell and getattr(shell.get_ipython(), "kernel", None))


def program() -> str:
    """What a user types to call us again: `hornbook`, or the running script where the shell finds none or another."""
    script = Path(sys.argv[0])
    found = shutil.which("hornbook")
    if script.name != "hornbook" or not script.is_file() or (found and script.samefile(found)):
        return "hornbook"
    return shell(min(os.path.relpath(script), str(script.absolute()), key=len))


def command(*words: object) -> str:
    """A command of ours, to be pasted into a shell."""
    return f"{program()} {shell(*words)}"


def shell(*words: object) -> str:
    """Words as a shell reads them back, whatever stands in a name: blanks, quotes, controls, bytes of no UTF-8."""
    return " ".join(_quoted(str(word)) for word in words)


def _quoted(word: str) -> str:
    plain = word.isprintable() and "  " not in word and word == word.strip()  # and is left alone where lines are folded
    if plain:
        return shlex.quote(word)

    def spelt(found: re.Match[str]) -> str:
        return "".join(f"\\{byte:03o}" for byte in os.fsencode(found[0]))

    return "$'" + re.sub(r"[^!-&(-\[\]-~]|[\\']", spelt, word) + "'"


WIDEST = 100


def width() -> int:
    """Characters that a line of text may have."""
    return min(shutil.get_terminal_size((WIDEST, 24)).columns - 1, WIDEST)


def paragraphs(text: str, indent: int = 0) -> None:
    """Lines of text, each wrapped between words, as wide as the terminal and no wider than is read well."""
    for line in visible(text).splitlines():
        blank = " " * (indent + len(line) - len(line.lstrip()))
        say(textwrap.fill(line.strip(), width(), initial_indent=blank, subsequent_indent=blank, break_on_hyphens=False))


class Progress(contextlib.AbstractContextManager["Progress"]):
    """One line that tells how far the work is. `update` may be called as often as one likes; `note` prints above
    it."""

    def __init__(self, stream: TextIO | None = None, live: bool | None = None) -> None:
        self._stream = stream or sys.stdout
        self._notebook = live is None and in_notebook()
        self._live = is_terminal(self._stream) if live is None else live
        self._width = 0
        self._shown_at = 0.0
        self._latest = ""
        self._shown = ""
        self._handle: Any = None

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, text: str) -> None:
        """Show `text` if the line is due for it."""
        now = time.monotonic()
        self._latest = text
        every = LIVE_EVERY_SECONDS if self._live or self._notebook else PLAIN_EVERY_SECONDS
        if now - self._shown_at >= every:
            self._shown_at = now
            self._show(text)

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._live:
            put("\r" + " " * self._width + "\r", self._stream)
            self._width = 0
        put(painted(laid_out(visible(text), self._stream), self._stream) + "\n", self._stream)

    def close(self) -> None:
        if self._latest != self._shown:
            self._show(self._latest)
        if self._live and self._width:
            fresh_line()
        self._latest, self._shown, self._width = "", "", 0

    def _show(self, text: str) -> None:
        self._shown, text = text, visible(text)
        if self._notebook:
            from IPython.display import display

            message = {"text/plain": text}
            if self._handle is None:
                self._handle = display(message, raw=True, display_id=True)
            else:
                self._handle.update(message, raw=True)
        elif self._live:
            text = text[: max(shutil.get_terminal_size().columns - 1, 20)]
            put("\r" + text + " " * max(self._width - len(text), 0), self._stream)
            self._width = len(text)
        else:
            put(text + "\n", self._stream)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> None:
    """A table: drawn on a terminal, columns set apart by two blanks elsewhere. Columns of numbers go to the `right`."""
    cells = [list(headings), *[list(row) for row in rows]]
    if is_terminal(sys.stdout):
        from rich import box
        from rich.console import Console
        from rich.table import Table

        drawn = Table(box=box.SIMPLE_HEAD)
        for column, heading in enumerate(headings):
            of_numbers = column in right
            drawn.add_column(
                heading,
                overflow="fold",
                justify="right" if of_numbers else "left",
                style="cyan" if of_numbers else None,
            )
        for row in cells[1:]:
            drawn.add_row(*row)
        Console().print(drawn)
        return
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        placed = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(placed).rstrip())


def columns(headings: Sequence[str], texts: Sequence[str]) -> None:
    """Texts beside one another on a terminal, each under its heading; elsewhere below one another."""
    if is_terminal(sys.stdout):
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=box.SIMPLE_HEAD, expand=True)
        for heading in headings:
            drawn.add_column(Text(heading), ratio=1, overflow="fold")
        drawn.add_row(*map(Text, texts))
        Console().print(drawn)
        return
    for heading, text in zip(headings, texts, strict=True):
        answer(f"--- {heading}\n{text}\n")


def count(number: float) -> str:
    """1234567 as 1.23M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:  # 999,999 is 1M, not 1000k
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}" if isinstance(number, float) else str(number)


def duration(seconds: float) -> str:
    """4000 as 1h06m."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"

"""The words of a command line, and how they are read.

In: words.  Out: a command's switches, and knobs in their long form; what is wrong with them as one line.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from hornbook.base.console import width
from hornbook.base.errors import UserError

INTERRUPTED = 130
NARROWEST = 24  # a column
DROPS = " (without what the tokenizer drops, such as blanks and accents: lower than of the whole text)"
SHORT = {
    "--errors": "--text.errors",
    "--max-documents": "--text.max-documents",
    "--from": "--start-from",
    "--minutes": "--train.minutes",
}


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints in our form."""

    def error(self, message: str) -> Any:
        raise UserError(f"{self.prog.removeprefix('hornbook ')}: {message}; see {self.prog} --help")


def parser_of(command: str, about: str) -> Parser:
    return Parser(prog=f"hornbook {command}", description=about, allow_abbrev=False)


def parse(parser: Parser, words: list[str]) -> argparse.Namespace:
    return parser.parse_args(words)


def with_json(parser: Parser, words: list[str], intermixed: bool = False) -> argparse.Namespace:
    parser.add_argument("--json", action="store_true", help="print JSON, for a script to read")
    return parser.parse_intermixed_args(words) if intermixed else parse(parser, words)


def with_model_options(parser: Parser, words: list[str], intermixed: bool = False) -> argparse.Namespace:
    parser.add_argument("--at", default="best", help="which checkpoint of a run: best, newest, or a step")
    parser.add_argument("--device", help="cpu, cuda, mps; the fastest there is when not given")
    parser.add_argument("--dtype", help="float32, exact, when not given; bfloat16 or, on a CPU, int8 are faster")
    return with_json(parser, words, intermixed)


def in_columns(text: str, second: int) -> str:
    """Lines of two columns, the second of which begins at `second`, each wrapped in its own where a terminal is too
    narrow."""
    import textwrap

    wide = max(width(), second + NARROWEST)
    lines = []
    for line in text.splitlines():
        below = " " * second if line.startswith("  ") and line[second - 1 : second + 1].strip() else ""
        lines += textwrap.wrap(line, wide, subsequent_indent=below, break_on_hyphens=False) or [""]
    return "\n".join(lines) + "\n"


def asks_help(words: list[str]) -> bool:
    return "-h" in words or "--help" in words


def take_flag(words: list[str], flag: str) -> bool:
    there = flag in words
    while flag in words:
        words.remove(flag)
    return there


def long_forms(words: list[str]) -> list[str]:
    """The knobs that have a short name."""
    pairs = [word.partition("=") for word in words]
    return [SHORT.get(name, name) + equals + value for name, equals, value in pairs]


def told_apart(as_json: bool) -> contextlib.AbstractContextManager[Any]:
    """Where a script reads the answer, what is told on the way goes to standard error."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()

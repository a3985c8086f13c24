"""The table of what Hornbook is measured by, one command a row (`make bench`).

    python bench/rows.py [--rows 4 5 8 9 10] [--peer NANOGPT] [--texts FOLDER] [--out FOLDER] [--views plain] [--tiny]

With no rows: those that together take less than a quarter of an hour on two cores. What a row measures, its own command
tells: python bench/NAME.py --help.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from measuring import RANKS, VIEWS, environment, texts_at_hand

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """A command, and how many minutes it takes, by each way to see the processor, on two plain cores."""

    what: str
    words: tuple[str, ...]
    minutes: float
    wants: tuple[str, ...] = ()


LEARNING = ("peer", "texts")
STEP = Row(
    "a training step, and its share of the matrix product", ("step.py", "--eager", "--rounds", "3"), 2.5, ("peer",)
)
DEMO = Row("nanoGPT's demo: sooner, and in the same time", ("learning.py", "--rows", "1", "2"), 6, LEARNING)
COMPILED = Row("the same, compiled too", ("step.py", "--rounds", "3"), 8, ("peer",))
ROWS: dict[str, Row] = {
    "1": DEMO,
    "2": DEMO,
    "3": Row("what an A100 reaches, in ten minutes", ("learning.py", "--rows", "3"), 11, LEARNING),
    "4": STEP,
    "4-compiled": COMPILED,
    "5": STEP,
    "6": Row("the demo", ("learning.py", "--rows", "6"), 4),
    "7": Row("the dial's forecasts", ("dial.py",), 130),
    "8": Row("one stream", ("generation.py", "--rounds", "3", "--tokens", "48"), 2, ("ranks",)),
    "9": Row("text to shards", ("prepare.py", "--megabytes", "50", "--rounds", "3"), 1, ("ranks",)),
    "10": Row("starts", ("start.py", "--rounds", "2"), 1.5),
}
IN_A_QUARTER_OF_AN_HOUR = ("4", "5", "8", "9", "10")
TINY = {
    "step.py": ("--eager", "--rounds", "1"),
    "prepare.py": ("--megabytes", "0.1", "--rounds", "1"),
    "generation.py": ("--rounds", "1", "--tokens", "4"),
    "start.py": ("--rounds", "1"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(IN_A_QUARTER_OF_AN_HOUR))
    parser.add_argument("--peer", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--texts", type=Path, default=texts_at_hand(), help=f"with tinyshakespeare.txt and {RANKS}")
    parser.add_argument("--out", type=Path, help="the folder of the record")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=list(VIEWS), help="how to see the processor")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    chosen = list(dict.fromkeys(ROWS[name] for name in given.rows))  # a command that measures two rows runs once
    print(f"about {sum(row.minutes for row in chosen) * len(given.views):.0f} minutes", flush=True)
    failed = [row.what for row in chosen if subprocess.run(command(row, given), env=environment("as-it-is")).returncode]
    for what in failed:
        print(f"failed: {what}", file=sys.stderr)
    return 1 if failed else 0


def command(row: Row, given: argparse.Namespace) -> list[str]:
    script, *words = row.words
    found = [sys.executable, str(HERE / script), *(TINY.get(script, words) if given.tiny else words)]
    optional = {"peer": given.peer, "texts": given.texts, "ranks": given.texts / RANKS}
    for name in row.wants:
        found += [f"--{name}", str(optional[name])] if optional[name] is not None else []
    found += ["--out", str(given.out)] if given.out is not None else []
    return [*found, "--views", *given.views, *(["--tiny"] if given.tiny else [])]


if __name__ == "__main__":
    sys.exit(main())

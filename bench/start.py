"""How long a command takes whose training is one step, all of it, with the shards ready; and the second start of a
compiled run. Row 10.

    python bench/start.py [--rounds 3] [--compiled-only|--eager-only] [--out FOLDER]

The run is the demo's, on Python's own sources. Each start is a process of its own, in a home where an earlier one has
left the shards, and for the second start of a compiled run what was compiled. Beside them, turn by turn: a Python that
only imports torch, below which no command that trains can come.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measuring import Claim, Found, medians, run, timed, turns

from hornbook.base.machine import choose_machine

ONE_STEP = ("train", "demo", "--train.steps", "1")


def python(home: Path, *words: str) -> None:
    environment = os.environ | {"HORNBOOK_HOME": str(home)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # which would have been filled elsewhere
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-500:]}")


class Starts:
    """Of one command again and again, each into a folder of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._folder, self._words, self._number = folder, words, 0

    def __call__(self) -> None:
        self._number += 1
        out = self._folder / f"run-{self._number}"
        python(self._folder / "home", "-m", "hornbook", *self._words, "--out", str(out))


def measure(given: argparse.Namespace) -> Found:
    found = Found()
    words = (*ONE_STEP, *(("--tiny",) if given.tiny else ()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        acts: dict[str, Callable[[], None]] = {"import torch": partial(python, folder / "home", "-c", "import torch")}
        if not given.compiled_only:
            acts["one step, shards ready"] = Starts(folder / "eager", *words, "--train.compile", "false")
        if not given.eager_only and choose_machine("cpu").can_compile:
            acts["second start of a compiled run"] = Starts(folder / "compiled", *words, "--train.compile", "true")
        elif not given.eager_only:
            found.pass_over("a compiled run: no C++ compiler")
        first = {name: timed(act)() for name, act in acts.items()}
        seconds = turns({name: timed(act) for name, act in acts.items()}, given.rounds)
    median = medians(seconds)
    found.figures = {"first": first, "seconds": seconds, "median": median}
    for name, aim in (("one step, shards ready", "4 s"), ("second start of a compiled run", "10 s")):
        if name in median:
            what = f"{name} (import torch alone {median['import torch']:.1f} s)"
            found.claims.append(Claim(10, what, median[name], "s", aim=aim))
    return found


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--compiled-only", action="store_true")
    only.add_argument("--eager-only", action="store_true")


if __name__ == "__main__":
    run(__doc__, measure, options)

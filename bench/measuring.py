"""What the commands of this folder share: turns, medians, the machine's own limits, and the record.

In: a function that measures, in this process.  Out: claims, each beside a peer where it is there; on the screen and,
with --out FOLDER, in figures.json and in the table of README.md there, which grows with every command that is given
the same folder.

A command measures in a child of its own for each way to see the processor: as it is, and as a plain one, with AVX2 and
float32 alone. Both get as many cores as --cores says. What the machine can do at most (its product of two large
matrices, and how fast it reads its memory) is measured in the same child, before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hornbook.base.machine import processor_name

ROOT = Path(__file__).resolve().parent.parent
VIEWS: dict[str, dict[str, str]] = {
    "as-it-is": {},
    "plain": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
    },
}
LESS_IS_BETTER = ("s", "ms", "nats a character", "bits a byte", "% off")
RANKS = "r50k_base.tiktoken"  # GPT-2's vocabulary, as tiktoken has it
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PRODUCT_WIDTH, READ_NUMBERS, TRIES = 2048, 64 * 2**20, 8


@dataclass(frozen=True)
class Claim:
    """A row of the table: which aim it belongs to, and what was reached."""

    row: int
    what: str
    ours: float
    unit: str
    peer: float | None = None
    peer_name: str = ""
    aim: str = ""
    ratio: float | None = None
    """How many times better ours is; where it is not given, by the two figures."""

    @property
    def times(self) -> float | None:
        if self.ratio is not None or not self.peer or not self.ours:
            return self.ratio
        return self.peer / self.ours if self.unit in LESS_IS_BETTER else self.ours / self.peer


@dataclass
class Found:
    """What a command measured."""

    claims: list[Claim] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)

    def pass_over(self, what: str) -> None:
        print(f"passed over: {what}", flush=True)
        self.passed_over.append(what)


Measure = Callable[[argparse.Namespace], Found]
Contestant = Callable[[], float]


# ---- turns


def timed(act: Callable[[], object]) -> Contestant:
    """Its seconds by the clock."""

    def turn() -> float:
        began = time.perf_counter()
        act()
        return time.perf_counter() - began

    return turn


def turns(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, turn by turn. A first round, in which everything is laid out, is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, turn in contestants.items():
            taken = turn()
            if number:
                seconds[name].append(taken)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(each) for name, each in seconds.items()}


def times_faster(seconds: Mapping[str, list[float]], ours: str, peer: str) -> float:
    """Of one to the other within a round, so that what else the machine did counts less; the median of the rounds."""
    return statistics.median(theirs / mine for mine, theirs in zip(seconds[ours], seconds[peer], strict=True))


# ---- the machine


def machine() -> dict[str, Any]:
    import torch

    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {name: found for name in ("torch", *PEERS) if (found := version_of(name))},
        "load_average": os.getloadavg()[0],
    }


PEERS = ("transformers", "tiktoken", "gigatoken", "ctranslate2")


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def ceilings(tiny: bool = False) -> dict[str, float]:
    """GFLOP/s of a product of two large matrices in each number type that the processor is fast in, and GB/s that all
    cores together read: the fastest of several, since everything else only takes away from it."""
    import torch

    from hornbook.base.machine import choose_machine

    width, numbers = (64, 2**16) if tiny else (PRODUCT_WIDTH, READ_NUMBERS)
    dtypes = {"float32": torch.float32, choose_machine("cpu").dtype: choose_machine("cpu").torch_dtype}
    found = {}
    for name, dtype in dtypes.items():
        matrix = torch.randn(width, width).to(dtype)
        found[f"product {name}, GFLOP/s"] = 2 * width**3 / best(partial(torch.matmul, matrix, matrix)) / 1e9
    data = torch.ones(numbers)
    found["memory read, GB/s"] = 4 * numbers / best(data.sum) / 1e9
    return found


def best(act: Callable[[], object]) -> float:
    turn = timed(act)
    return min(turn() for _ in range(TRIES))


# ---- the command


def run(doc: str | None, measure: Measure, options: Callable[[argparse.ArgumentParser], None] | None = None) -> None:
    """A command's `main`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if options is not None:
        options(parser)
    parser.add_argument("--out", type=Path, help="the folder of the record")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=list(VIEWS), help="how to see the processor")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="small enough for seconds, to see that it runs")
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)  # a child leaves them here
    given = parser.parse_args()
    if given.figures is not None:
        given.figures.write_text(json.dumps(measured(measure, given)))
        return
    if hasattr(os, "sched_setaffinity"):  # before any library of a child counts them
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    command = as_given(parser, given)
    for view in given.views:
        print(f"\n== {command}, {view}", flush=True)
        found = in_a_child(view)
        print(table({command: {view: found}}))
        if given.out:
            add_to_record(given.out, command, view, found)


def as_given(parser: argparse.ArgumentParser, given: argparse.Namespace) -> str:
    """The command with the options that are not the usual ones; of places, only their names."""
    words = [Path(sys.argv[0]).name]
    for name, value in vars(given).items():
        if value == parser.get_default(name) or name in ("out", "views", "figures"):
            continue
        parts = value if isinstance(value, list) else [] if value is True else [value]
        words += [
            f"--{name.replace('_', '-')}",
            *(each.name if isinstance(each, Path) else str(each) for each in parts),
        ]
    return shlex.join(words)


def measured(measure: Measure, given: argparse.Namespace) -> dict[str, Any]:
    before = ceilings(given.tiny)
    began = time.perf_counter()
    given.ceilings = before
    found = measure(given)
    return asdict(found) | {
        "claims": [asdict(claim) | {"times": claim.times} for claim in found.claims],
        "machine": machine(),
        "ceilings": {"before": before, "after": ceilings(given.tiny)},
        "seconds": round(time.perf_counter() - began, 1),
    }


def in_a_child(view: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        subprocess.run([sys.executable, *sys.argv, "--figures", str(figures)], env=environment(view), check=True)
        found: dict[str, Any] = json.loads(figures.read_text())
        return found


def environment(view: str) -> dict[str, str]:
    """Of a child, which finds hornbook where this process does, keeps what is compiled of Python, as everybody's does
    and a start would else take twice as long, and lets threads wait as the commands do."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    there = {name: value for name, value in os.environ.items() if name not in VIEWS["plain"]}
    more = {"PYTHONPATH": os.pathsep.join(paths), "GOMP_SPINCOUNT": "20000", "PYTHONUNBUFFERED": "1"}
    more["PYTHONDONTWRITEBYTECODE"] = ""
    return there | more | VIEWS[view]


def texts_at_hand() -> Path:
    """tinyshakespeare.txt and r50k_base.tiktoken: $HORNBOOK_TEST_DATA, or shared/data beside the project."""
    return Path(os.environ.get("HORNBOOK_TEST_DATA") or ROOT.parent / "shared" / "data")


# ---- the record


def add_to_record(folder: Path, command: str, view: str, found: dict[str, Any]) -> None:
    """What was measured before in the same folder stays; what is measured again takes its place."""
    folder.mkdir(parents=True, exist_ok=True)
    figures, page = folder / "figures.json", folder / "README.md"
    record: dict[str, Any] = json.loads(figures.read_text()) if figures.exists() else {}
    record.setdefault(command, {})[view] = found
    figures.write_text(json.dumps(record, indent=1) + "\n")
    text = page.read_text() if page.exists() else f"# {folder.name}\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(record)}\n{END}{rest.partition(END)[2]}")


def table(record: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Of every command and view."""
    lines = ["| # | what | processor seen | peer | ours | times better | aim |", "| --- " * 7 + "|"]
    claims = [(view, claim) for views in record.values() for view, found in views.items() for claim in found["claims"]]
    for view, claim in sorted(claims, key=lambda each: each[1]["row"]):
        peer = "" if claim["peer"] is None else f"{claim['peer_name']} {shown(claim['peer'])}"
        times = "" if claim["times"] is None else f"**{claim['times']:.2f}**"
        ours = f"{shown(claim['ours'])} {claim['unit']}"
        lines.append(f"| {claim['row']} | {claim['what']} | {view} | {peer} | {ours} | {times} | {claim['aim']} |")
    lines += ["", "| command | processor seen | limits before, after | passed over |", "| --- " * 4 + "|"]
    for command, views in record.items():
        for view, found in views.items():
            before, after = found["ceilings"]["before"], found["ceilings"]["after"]
            limits = "; ".join(f"{name} {before[name]:.0f}, {after[name]:.0f}" for name in before)
            lines.append(f"| {command} | {view} | {limits} | {'; '.join(found['passed_over'])} |")
    return "\n".join(lines)


def shown(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}" if abs(figure) >= 10 else f"{figure:.3f}"

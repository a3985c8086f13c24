"""Runs as rows: what each came to, and by which settings they differ.

In: run folders.  Out: rows of plain values, for a table, CSV or pandas; and of runs that differ in nothing but their
seed, whether the best is better than chance.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hornbook.base.errors import UserError
from hornbook.base.settings import flat
from hornbook.report.observed import Observing
from hornbook.report.run_page import Told, parameters_of, throughput
from hornbook.runs.folder import RunFolder

# By which nobody means to tell runs apart.
OF_NO_MATTER = {"seed"}
# How many standard errors a mean of so many degrees of freedom is off, once in twenty times (Student's t).
STUDENT = (math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
STUDENT_OF_MANY = 2.0


def results_of(told: Told) -> dict[str, Any]:
    """What a run came to; None of what it did not measure."""
    seen, best = told.seen, told.best or {}
    _, rates = throughput(seen)
    tokens = seen["tokens"]
    placed = np.flatnonzero(seen["step"] <= best.get("step", -1))
    seconds = seen["seconds"]
    return {
        "bits_per_byte": best.get("val_bits_per_byte"),
        "val_loss": best.get("val_loss"),
        "perplexity": best.get("val_perplexity"),
        "best_step": best.get("step"),
        "best_tokens": int(tokens[placed[-1]]) if len(placed) and np.isfinite(tokens[placed[-1]]) else None,
        "steps": seen.step,
        "tokens": int(np.nanmax(tokens)) if np.isfinite(tokens).any() else None,
        "readings": round(seen.epochs, 3) if math.isfinite(seen.epochs) else None,
        "seconds": float(np.nanmax(seconds)) if np.isfinite(seconds).any() else None,
        "tokens_per_second": round(float(np.median(rates))) if len(rates) else None,
        "parameters": parameters_of(told.record),
    }


def settings_of(told: Told) -> dict[str, Any]:
    """Every knob by its dotted name."""
    return flat(told.record.config) if told.record is not None else {}


def differing(runs: list[Told]) -> list[str]:
    """The knobs that are not the same in all of them."""
    settings = [settings_of(told) for told in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    return [name for name in names if len({repr(each.get(name)) for each in settings}) > 1]


def rows_of(runs: Iterable[Path]) -> list[dict[str, Any]]:
    """A row a run: its results, then all of its knobs."""
    told = [Told.of(run) for run in runs]
    return [{"run": each.name} | results_of(each) | settings_of(each) for each in told]


def runs_in(folder: Path) -> list[Path]:
    """Those of a folder that have come to a step."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of runs; hornbook train begins one")
    there = [each for each in sorted(folder.iterdir()) if RunFolder(each).has_record()]
    return [each for each in there if Observing(each).look(over=True).steps]


def as_csv(runs: list[Told]) -> str:
    """Results, and the knobs that differ; of one run, all of them."""
    knobs = differing(runs) if len(runs) > 1 else list(settings_of(runs[0]))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", *results_of(runs[0]), *knobs])
    for told in runs:
        settings = settings_of(told)
        table.writerow([told.name, *results_of(told).values(), *(settings.get(name) for name in knobs)])
    return text.getvalue()


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    names: tuple[str, ...]
    bits: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.bits)

    @property
    def said(self) -> str:
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} (the mean of {len(self.names)} seeds)"


def groups_of(runs: list[Told]) -> list[Group]:
    """The best first; of those that measured something."""
    found: dict[str, list[tuple[str, float]]] = {}
    for told in runs:
        bits = (told.best or {}).get("val_bits_per_byte")
        if bits is not None:
            alike = {name: value for name, value in settings_of(told).items() if name not in OF_NO_MATTER}
            key = repr(sorted(alike.items(), key=lambda each: each[0])) if alike else told.name
            found.setdefault(key, []).append((told.name, float(bits)))
    groups = [Group(tuple(name for name, _ in each), tuple(bits for _, bits in each)) for each in found.values()]
    return sorted(groups, key=lambda group: group.mean)


def verdict(runs: list[Told]) -> str:
    """Who won, and whether that is more than chance."""
    groups = groups_of(runs)
    texts = {told.record.fingerprint for told in runs if told.record is not None}
    held_back = {_validation(told) for told in runs}
    if len(groups) < 2:
        return "Fewer than two different runs were evaluated, so there is nothing to compare."
    first, second = groups[:2]
    by = second.mean - first.mean
    best = f"{first.said} is best, by {by:.3f} bits per byte before {second.said}"
    if len(texts) > 1 and len(held_back) > 1:
        return f"{best}; but they were validated on different texts, of which one may be easier than another."
    freedom = sum(len(group.bits) - 1 for group in groups)
    if freedom == 0:
        return (
            f"{best}. Of one seed each, nobody can tell how much of that is chance: train each again with --seed 2 and "
            "3, and compare them all."
        )
    spread = sum(sum((bits - group.mean) ** 2 for bits in group.bits) for group in groups)
    student = STUDENT[freedom] if freedom < len(STUDENT) else STUDENT_OF_MANY
    noise = student * math.sqrt(spread / freedom * (1 / len(first.bits) + 1 / len(second.bits)))
    if by > noise:
        return f"{best}: more than seeds alone would make of it, {noise:.3f} at most in nineteen of twenty cases."
    return (
        f"{first.said} and {second.said} are level: they are {by:.3f} bits per byte apart, and seeds alone make up to "
        f"{noise:.3f} in nineteen of twenty cases."
    )


def _validation(told: Told) -> Mapping[str, Any] | str:
    """What tells a validation text from another, however it was cut into tokens."""
    facts = told.shards.split_facts("val") if told.shards is not None else {}
    return f"{facts.get('bytes_of_text')} {facts.get('documents')}" if facts else told.name

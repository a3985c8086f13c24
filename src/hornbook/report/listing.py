"""Which runs there are, and how each stands.

In: a folder of runs, or one run.  Out: for each its state, its step, its last and its best loss, what it takes on the
disk, and when it was last written to. Of a log only the end is read, and of checkpoints what was noted about them, so
that a hundred runs take no longer than a glance.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hornbook.base import files
from hornbook.base.console import count, duration, table
from hornbook.base.errors import UserError
from hornbook.runs.folder import STATE, RunFolder
from hornbook.runs.logs import last_entries

# For the last step, and for evaluations, of which the best before these is noted in the newest checkpoint.
LAST_BYTES, BYTES_LOOKED_AT = 1 << 12, 1 << 16
HEADINGS = ("run", "state", "step", "loss", "best val", "size", "written")
OF_NUMBERS = (2, 3, 4, 5)


@dataclass(frozen=True)
class Standing:
    """How a run stands."""

    run: str
    state: str
    """running, done, interrupted, failed, not begun (no checkpoint yet), or damaged."""
    process: int | None
    """That works on it."""
    step: int | None
    """The last in its log; of one that goes on with `resume`, that of its newest checkpoint."""
    loss: float | None
    best_val_loss: float | None
    bytes: int
    seconds_since_written: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def row(self) -> tuple[str, ...]:
        by = f" (process {self.process})" if self.process is not None else ""
        numbers = [f"{each:.3f}" if each is not None else "-" for each in (self.loss, self.best_val_loss)]
        step = f"{self.step:,}" if self.step is not None else "-"
        ago = f"{duration(self.seconds_since_written)} ago"
        return (self.run, self.state + by, step, *numbers, count(float(self.bytes)) + "B", ago)


def standings(folder: Path) -> list[Standing]:
    """Of the runs in a folder, the one that was written to last first; of a run, its own."""
    if RunFolder(folder).has_record():
        return [_standing(folder)]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of runs; hornbook train begins one")
    runs = [each for each in folder.iterdir() if RunFolder(each).has_record()]
    return sorted(map(_standing, runs), key=lambda each: each.seconds_since_written)


def show(found: list[Standing]) -> None:
    table(HEADINGS, [each.row() for each in found], right=OF_NUMBERS)


def _standing(path: Path) -> Standing:
    run = RunFolder(path)
    locked, state = files.is_locked(path), _newest_state(run)
    steps = [each for each in last_entries(run.metrics, LAST_BYTES) if "loss" in each]
    evaluations = last_entries(run.metrics, BYTES_LOOKED_AT, '"val_loss"')
    tried = [state.get("best_val_loss"), *(each.get("val_loss") for each in evaluations)]
    evaluated = [each for each in tried if isinstance(each, int | float)]
    step = steps[-1].get("step") if steps and (locked or not state) else state.get("step")
    size, written = _size(path)
    return Standing(
        run=str(path),
        state="running" if locked else _ended(run, state),
        process=files.holder(path) if locked else None,
        step=step,
        loss=steps[-1].get("loss") if steps else None,
        best_val_loss=min(evaluated, default=None),
        bytes=size,
        seconds_since_written=max(time.time() - written, 0.0),
    )


def _newest_state(run: RunFolder) -> dict[str, Any]:
    """What the newest checkpoint says of the run, whether or not it is whole."""
    for checkpoint in run.checkpoints():
        try:
            return files.read_json(checkpoint / STATE)
        except UserError:
            continue
    return {}


def _ended(run: RunFolder, state: dict[str, Any]) -> str:
    if not run.is_ours():
        return "damaged"
    if not state:
        return "not begun"
    said = str(state.get("ended") or "interrupted")  # a process that was killed says nothing
    return said if said in ("interrupted", "failed") else "done"


def _size(folder: Path) -> tuple[int, float]:
    """Bytes of all files below, and when the newest of them was written. What is deleted meanwhile is not there."""
    total, newest, waiting = 0, 0.0, [os.fspath(folder)]
    while waiting:
        with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                facts = entry.stat(follow_symlinks=False)
                total += facts.st_size
                if entry.name != files.LOCK:
                    newest = max(newest, facts.st_mtime)
    return total, newest

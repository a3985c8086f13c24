"""A run, seen from outside while it trains and after.

In: a run's folder, of which files are only read.  Out: what it kept, its curve, its samples, and whether it trains at
this moment. A log is read on from where the last look ended, so that looking often stays cheap.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, bisect_right
from collections import deque
from pathlib import Path
from typing import Any

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.report.thinning import thinned
from hornbook.runs.folder import SNAPSHOTS, RunFolder, step_of
from hornbook.runs.logs import Following

MOST_POINTS = 1000
SAMPLES_KEPT = 200


class Series:
    """Numbers by steps, which rise."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []

    def add(self, step: Any, value: Any) -> None:
        if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value):
            self.steps.append(step)
            self.values.append(value)

    def at(self, step: int) -> float | None:
        place = bisect_left(self.steps, step)
        return self.values[place] if self.steps[place : place + 1] == [step] else None

    def after(self, step: int) -> list[tuple[float, float]]:
        """What came after a step, of too many points the highest and the lowest of each stretch."""
        first = bisect_right(self.steps, step)
        return thinned(self.steps[first:], self.values[first:], MOST_POINTS)


class Watch:
    """One run. Several threads may ask at once."""

    def __init__(self, run: Path, name: str | None = None) -> None:
        self.run, self.name = run, name or run.resolve().name
        self._folder = RunFolder(run)
        self._asked = threading.Lock()
        self._metrics, self._samples = Following(self._folder.metrics), Following(self._folder.samples)
        self._forget_metrics()
        self._said: deque[dict[str, Any]] = deque(maxlen=SAMPLES_KEPT)

    @property
    def training(self) -> bool:
        """A run that trains holds its folder's lock, which dies with its process."""
        return files.is_locked(self.run)

    def points(self) -> list[dict[str, Any]]:
        """What the run kept, from the first step on; where a step has both, its checkpoint."""
        with self._asked:
            self._look_at_metrics()
            kept = {step_of(folder): folder for folder in self._folder.kept()[::-1]}
            return [
                {
                    "id": f"{self.name}@{step}",
                    "step": step,
                    "tokens": self._tokens.at(step),
                    "val_loss": self._val.at(step),
                    "kind": "snapshot" if folder.parent.name == SNAPSHOTS else "checkpoint",
                }
                for step, folder in kept.items()
            ]

    def curve(self, after: int = -1) -> dict[str, Any]:
        """Both losses after a step. Where `step` is less than the caller knew of, the run went on from an earlier one,
        and the whole curve is to be asked for again."""
        training = self.training  # asked first: of a run that has ended, nothing is missing then
        with self._asked:
            self._look_at_metrics()
            return {
                "run": self.name,
                "step": self._train.steps[-1] if self._train.steps else 0,
                "steps_total": self._steps_total(),
                "training": training,
                "train": self._train.after(after),
                "val": self._val.after(after),
            }

    def samples(self, last: int) -> list[dict[str, Any]]:
        """What the model said as it trained, the newest last."""
        with self._asked:
            anew, entries = self._samples.more()
            if anew:
                self._said.clear()
            self._said.extend({name: each.get(name) for name in ("step", "prompt", "text")} for each in entries)
            return list(self._said)[-last:] if last > 0 else []

    def _look_at_metrics(self) -> None:
        anew, entries = self._metrics.more()
        if anew:
            self._forget_metrics()
        for each in entries:
            step = each.get("step")
            self._train.add(step, each.get("loss"))
            self._val.add(step, each.get("val_loss"))
            if "loss" in each:
                self._tokens.add(step, each.get("tokens"))

    def _forget_metrics(self) -> None:
        self._train, self._val, self._tokens = Series(), Series(), Series()

    def _steps_total(self) -> int | None:
        """How many steps the run is to take, where it ends by their number."""
        try:
            steps = self._folder.record().config["train"]["steps"]
        except (UserError, KeyError, TypeError):
            return None
        return steps if isinstance(steps, int) else None

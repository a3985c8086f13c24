"""What a run's test split was looked at for.

In: a run, and scores as they are made.  Out: `tested.json` in its folder, with a hash of itself. A text that is to
judge a model at the very end judges no more once models were chosen by it, so every look stays written down.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook.base import files, ours
from hornbook.base.errors import UserError
from hornbook.runs.folder import RunFolder

TESTED = "tested.json"


@dataclass(frozen=True)
class Looks:
    file: Path
    run_id: str
    so_far: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, run: RunFolder) -> Looks:
        file, run_id = run.path / TESTED, run.record().run_id
        if not file.exists():
            return cls(file, run_id, ())
        found = files.read_json(file)
        looks = found.get("looks")
        if "sha256" not in found or not ours.is_unchanged(found) or not isinstance(looks, list):
            raise UserError(f"{file}: was edited, or is none of Hornbook's; put it back as it was, or move it away")
        return cls(file, run_id, tuple(looks) if found.get("run_id") == run_id else ())  # another run was here before

    def find(self, model: str, dtype: str) -> dict[str, Any] | None:
        """The look at this very model, by the hash of its checkpoint."""
        return next((each for each in self.so_far if (each["checkpoint"], each["dtype"]) == (model, dtype)), None)

    def keep(self, look: dict[str, Any]) -> None:
        value = {"run_id": self.run_id, "looks": [*self.so_far, look]}
        files.write_json(self.file, ours.with_own_hash(value))

    def told(self) -> str:
        first, last = self.so_far[0], self.so_far[-1]
        times = f"{len(self.so_far)} times, " if len(self.so_far) > 1 else ""
        return f"{times}last at {last['when']}: loss {last['loss']:.4f}, {last['model']}" + (
            f"; first at {first['when']}" if times else ""
        )


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")

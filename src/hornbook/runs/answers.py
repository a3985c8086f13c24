"""What a run's models have said to the same prompts.

In: what was asked, and the answers by steps.  Out: `answers.json` in the run's folder, with a hash of itself, by which
it is known to be ours before it is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hornbook.base import files, ours
from hornbook.base.console import warn
from hornbook.base.errors import MachineError, UserError
from hornbook.runs.folder import RunFolder


@dataclass(frozen=True)
class Asked:
    """The same for all: what is drawn differs by the weights alone."""

    prompts: tuple[str, ...]
    seed: int
    max_tokens: int
    rules: Mapping[str, Any]
    """SamplerConfig's knobs."""


@dataclass
class Answers:
    asked: Asked
    texts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """By steps, an answer to each prompt."""
    weights: dict[int, str] = field(default_factory=dict)
    """By steps, the hash of the files that answered."""
    unasked: int = 0
    """Models that there was no time for; not kept."""

    @classmethod
    def of(cls, run: RunFolder) -> Answers | None:
        """What lies there; None of a file that is not ours, is of another run, or is not as it was written."""
        try:
            value = files.read_json(run.answers)
            if not ours.is_unchanged(value) or value["run_id"] != run.record().run_id:
                return None
            asked = value["asked"]
            found = cls(Asked(tuple(asked["prompts"]), asked["seed"], asked["max_tokens"], asked["rules"]))
            for each in value["answers"]:
                found.texts[int(each["step"])] = tuple(each["texts"])
                found.weights[int(each["step"])] = each["weights"]
        except (UserError, OSError, KeyError, TypeError, ValueError):
            return None
        return found if found.texts else None

    def write(self, run: RunFolder) -> None:
        """Nothing needs them: a disk without room, or a file of somebody else's in their place, ends nothing."""
        steps = sorted(self.texts)
        said = [{"step": step, "weights": self.weights[step], "texts": self.texts[step]} for step in steps]
        value = {"run_id": run.record().run_id, "asked": asdict(self.asked), "answers": said}
        if (run.answers.exists() or run.answers.is_symlink()) and not _is_ours(run):
            warn(f"{run.answers}: not known to be written by Hornbook; left as it is, and the answers are not kept")
            return
        try:
            files.write_json(run.answers, ours.with_own_hash(value))
        except MachineError as error:
            warn(f"the answers are not kept: {error}")


def _is_ours(run: RunFolder) -> bool:
    try:
        value = files.read_json(run.answers)
        return not run.answers.is_symlink() and "answers" in value and ours.is_unchanged(value)
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return False

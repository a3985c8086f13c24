"""What the doctor says of a run.

In: what a rule has seen.  Out: the finding in plain words, what it rests on, and the one thing to do about it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    title: str
    evidence: str
    action: str
    rule: str = ""
    """Its name in doctor.RULES."""

    def line(self) -> str:
        return f"{self.title}: {self.evidence}. {self.action}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

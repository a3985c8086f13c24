"""What went wrong in a run, or could go better, in plain words: each finding with what it rests on and one thing to do.

In: a run folder, at its end or while it grows.  Out: findings. A rule is one entry in RULES: a function of what was
observed. A healthy run has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hornbook.base.console import warn
from hornbook.report import rules_of_learning, rules_of_text
from hornbook.report.finding import Finding
from hornbook.report.observed import Observed, Observing
from hornbook.runs.folder import RunFolder

GROWN = 1.01
# Of a log that is longer when a run is gone on with, only what comes is looked at: to read all of it would take longer
# than what else there is to be done.
LONG_LOG = 4 << 20
Rule = Callable[[Observed], Finding | None]
# What weighs most first: who reads only one should read that.
RULES: dict[str, Rule] = {
    "sees-ahead": rules_of_text.sees_ahead,
    "validation-in-training": rules_of_text.validation_in_training,
    "document-boundary": rules_of_text.document_boundary,
    "learning-rate-too-high": rules_of_learning.learning_rate_too_high,
    "learning-rate-too-low": rules_of_learning.learning_rate_too_low,
    "exploding-layer": rules_of_learning.exploding_layer,
    "dead-layer": rules_of_learning.dead_layer,
    "too-little-text": rules_of_text.too_little_text,
    "overfits": rules_of_learning.overfits,
    "vocabulary": rules_of_text.vocabulary,
    "bound-by-input": rules_of_learning.bound_by_input,
    "still-improves": rules_of_learning.still_improves,
}


def findings(run: Observed) -> list[Finding]:
    found = ((name, rule(run)) for name, rule in RULES.items())
    return [replace(finding, rule=name) for name, finding in found if finding is not None]


def examine(run: Path) -> list[Finding]:
    """All that is to be said of a run, as far as it has come."""
    return findings(Observing(run).look(over=True))


class Doctor:
    """Looks at a run while it goes. Whatever is wrong with the doctor does not end the run."""

    def __init__(self, run: Path) -> None:
        there = metrics.stat().st_size if (metrics := RunFolder(run).metrics).is_file() else 0
        self._observing = Observing(run, from_byte=there if there > LONG_LOG else 0)
        self._told: set[str] = set()
        self._steps = 0

    def new_findings(self) -> list[Finding]:
        """What was not found before. A run that has grown by little is not looked at again, so that of one which is
        evaluated often this takes no part that could be measured."""
        try:
            seen = self._observing.look(over=False)
            if seen.steps < GROWN * self._steps:
                return []
            self._steps = seen.steps
            found = [each for each in findings(seen) if each.rule not in self._told]
        except Exception as error:
            warn(f"the run could not be looked at ({type(error).__name__}: {error}); training goes on")
            return []
        self._told |= {each.rule for each in found}
        return found

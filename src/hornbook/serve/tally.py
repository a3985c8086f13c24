"""What the server did, in numbers.

In: events, from any thread.  Out: Prometheus' text form, version 0.0.4.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
COUNTED = {
    "requests_begun": "Requests for a completion whose fields are right, each of which ends once",
    "requests": "Requests for a completion, by how they ended",
    "responses": "HTTP responses, by status code",
    "prompt_tokens": "Tokens of prompts",
    "generated_tokens": "Tokens that models took",
    "engine_failures": "Errors in a model's thread",
}
MEASURED = {
    "step_seconds": "Time of a step, which gives one token to each text",
    "first_token_seconds": "From a request to its first token",
}
OUTCOMES = ("complete", "cancelled", "full", "closing", "failed", "impossible")


@dataclass
class Spread:
    """How often a value fell below each bound, and the sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0


class Tally:
    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter({("requests", f'outcome="{each}"'): 0 for each in OUTCOMES})
        self._spreads = {name: Spread() for name in MEASURED}

    def count(self, name: str, number: int = 1, label: str = "") -> None:
        """`label` in Prometheus' spelling: name="value"."""
        with self._changing:
            self._counts[name, label] += number

    def end(self, outcome: str) -> None:
        """Of a request."""
        self.count("requests", label=f'outcome="{outcome}"')

    def measure(self, name: str, seconds: float) -> None:
        with self._changing:
            spread = self._spreads[name]
            spread.counts[bisect_left(BOUNDS, seconds)] += 1
            spread.total += seconds

    def text(self, gauges: Iterable[tuple[str, str, float]]) -> str:
        """With what is so at this moment: (name, what it is, value)."""
        with self._changing:
            lines = [*self._counters(), *self._histograms()]
        for name, about, value in gauges:
            lines += [*_heading(name, about, "gauge"), _line(name, "", value)]
        return "\n".join(lines) + "\n"

    def _counters(self) -> Iterator[str]:
        for name, about in COUNTED.items():
            yield from _heading(f"{name}_total", about, "counter")
            labelled = sorted((label, value) for (each, label), value in self._counts.items() if each == name)
            yield from (_line(f"{name}_total", label, value) for label, value in labelled or [("", 0)])

    def _histograms(self) -> Iterator[str]:
        for name, about in MEASURED.items():
            yield from _heading(name, about, "histogram")
            spread, below = self._spreads[name], 0
            for bound, number in zip([*map(str, BOUNDS), "+Inf"], spread.counts, strict=True):
                below += number
                yield _line(f"{name}_bucket", f'le="{bound}"', below)
            yield _line(f"{name}_sum", "", spread.total)
            yield _line(f"{name}_count", "", below)


def _heading(name: str, about: str, kind: str) -> list[str]:
    return [f"# HELP hornbook_{name} {about}.", f"# TYPE hornbook_{name} {kind}"]


def _line(name: str, label: str, value: float) -> str:
    return f"hornbook_{name}{'{' + label + '}' if label else ''} {value}"

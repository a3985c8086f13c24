"""What the server did, in numbers.

In: events, from any thread.  Out: Prometheus' text form, by Prometheus' own client.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
COUNTED = {
    "requests_begun": "Requests for a completion whose fields are right, each of which ends once",
    "prompt_tokens": "Tokens of prompts",
    "generated_tokens": "Tokens that models took",
    "engine_failures": "Errors in a model's thread",
}
MEASURED = {
    "step_seconds": "Time of a step, which gives one token to each text",
    "first_token_seconds": "From a request to its first token",
}
OUTCOMES = ("complete", "cancelled", "full", "closing", "failed", "impossible")


class Counts:
    def __init__(self) -> None:
        mine = self._registry = CollectorRegistry()  # of this server alone
        self._counted = {name: Counter(f"hornbook_{name}", about, registry=mine) for name, about in COUNTED.items()}
        self._measured = {
            name: Histogram(f"hornbook_{name}", about, registry=mine, buckets=BOUNDS)
            for name, about in MEASURED.items()
        }
        how = "Requests for a completion, by how they ended"
        self._ended = Counter("hornbook_requests", how, ["outcome"], registry=mine)
        self._answered = Counter("hornbook_responses", "HTTP responses, by status code", ["code"], registry=mine)
        for outcome in OUTCOMES:
            self._ended.labels(outcome)

    def count(self, name: str, number: int = 1) -> None:
        self._counted[name].inc(number)

    def end(self, outcome: str) -> None:
        """Of a request."""
        self._ended.labels(outcome).inc()

    def answer(self, status: int) -> None:
        self._answered.labels(status).inc()

    def measure(self, name: str, seconds: float) -> None:
        self._measured[name].observe(seconds)

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """What is asked whenever the numbers are."""
        Gauge(f"hornbook_{name}", about, registry=self._registry).set_function(value)

    def text(self) -> str:
        return generate_latest(self._registry).decode()

"""A server under test, and a model that takes its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import torch
from prometheus_client.parser import text_string_to_metric_families

from hornbook.infer.speaker import Speaker
from hornbook.serve.models import Models
from hornbook.serve.server import Server
from hornbook.serve.tally import OUTCOMES


class Slow(Speaker):
    """As fast as a model of some size: so many seconds for each step."""

    def __init__(self, folder: Path, step_seconds: float = 0.01) -> None:
        super().__init__(folder, "cpu")
        logits_of = self.model.logits_of

        def slowly(x: torch.Tensor) -> torch.Tensor:
            time.sleep(step_seconds)
            return self.heard(logits_of(x))

        self.model.logits_of = slowly  # type: ignore[method-assign]

    def heard(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


class Endless(Slow):
    """Never takes the end-of-text token."""

    def heard(self, logits: torch.Tensor) -> torch.Tensor:
        logits[:, self.tokenizer.end_of_text] = float("-inf")
        return logits


def read_metrics(text: str) -> dict[str, float]:
    """By Prometheus' own reader: name{label="value"} and the number."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {name_of(each.name, each.labels): each.value for each in samples}


def name_of(name: str, labels: dict[str, str]) -> str:
    return name + ("{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else "")


class Running:
    """A server in a thread of its own."""

    def __init__(self, server: Server, models: Models, port: int, thread: threading.Thread) -> None:
        self.server, self.models, self.port, self.thread = server, models, port, thread
        self.url = f"http://127.0.0.1:{port}"

    def client(self, **options: Any) -> httpx2.Client:
        # Without the certificates, whose loading takes longer than most that is asked here.
        return httpx2.Client(base_url=self.url, timeout=30, verify=False, **options)

    def metrics(self) -> dict[str, float]:
        return read_metrics(self.models.tally.text())

    def outcomes(self) -> dict[str, int]:
        found = self.metrics()
        return {name: int(found[f'hornbook_requests_total{{outcome="{name}"}}']) for name in OUTCOMES}

    def every_request_ended_once(self) -> bool:
        """Once they have: a client may have its answer before the server has counted it."""
        return self.settles(lambda: sum(self.outcomes().values()) == self.metrics()["hornbook_requests_begun_total"])

    def settles(self, is_so: Callable[[], bool], seconds: float = 60.0) -> bool:
        last = time.monotonic() + seconds
        while not is_so() and time.monotonic() < last:
            time.sleep(0.002)
        return is_so()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

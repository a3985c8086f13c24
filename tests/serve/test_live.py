"""A real `hornbook train` beside a real `hornbook serve` of the run that it writes."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from effort import tries
from hornbook.runs.logs import read_log

KNOBS = {
    "tokenizer.kind": "byte",
    "model.n-layer": 1,
    "model.n-head": 1,
    "model.n-embd": 16,
    "model.context": 16,
    "train.steps": 1_000_000,
    "train.batch-tokens": 64,
    "train.eval-every-steps": 100,
    "train.save-every-steps": 20,
    "train.keep-checkpoints": 1,
    "train.compile": "false",
    "train.device": "cpu",
    "train.dtype": "float32",
    "sample.tokens": 8,
}


def address_of(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"http://[\d.]+:\d+", line):
            return found[0]
    pytest.fail(f"no address told: {server.stderr.read() if server.stderr else ''}")


def wait_until(what: Callable[[], Any], seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def test_a_run_is_watched_and_spoken_with_while_it_trains(
    text_file: Path, tmp_path: Path, child: Callable[..., subprocess.Popen[str]]
) -> None:
    """It saves all the time and keeps one checkpoint, so that what is being loaded is often deleted meanwhile."""
    run = tmp_path / "live"
    training = child("train", f"--data={text_file}", f"--out={run}", *(f"--{k}={v}" for k, v in KNOBS.items()))
    wait_until((run / "run.json").exists)
    with httpx2.Client(base_url=address_of(child("serve", str(run), "--port", "0")), timeout=60) as client:

        def curve(after: int = -1) -> dict[str, Any]:
            return client.get("/api/runs/live/curve", params={"after": after}).raise_for_status().json()

        (model,) = client.get("/api/models").raise_for_status().json()
        assert (model["id"], model["kind"], model["training"]) == ("live", "run", True)
        first = curve()
        assert first["training"]
        assert first["steps_total"] == 1_000_000
        later = wait_until(lambda: (now := curve(first["step"]))["step"] > first["step"] + 50 and now)
        assert all(step > first["step"] for step, _ in later["train"])
        samples = wait_until(lambda: client.get("/api/runs/live/samples", params={"last": 2}).json())
        assert samples[-1]["step"] % 100 == 0
        for number in range(tries(9, 30)):
            at = ("live@newest", "live", "live@1")[number % 3]
            asked = {"model": at, "prompt": "import", "max_tokens": 3, "temperature": 0}
            answer = client.post("/v1/completions", json=asked)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 3
        (now,) = client.get("/api/models").json()
        assert now["points"][-1]["step"] > model["points"][-1]["step"] if model["points"] else now["points"]
        training.send_signal(signal.SIGTERM)
        assert training.wait(60) == 130
        assert not client.get("/api/models").json()[0]["training"]
        ended = curve()
        logged = [each["step"] for each in read_log(run / "metrics.jsonl") if "loss" in each]
        assert (ended["training"], ended["step"]) == (False, logged[-1])
        newest = client.get("/api/models").json()[0]["points"][-1]
        assert (newest["step"], newest["kind"]) == (logged[-1], "checkpoint")

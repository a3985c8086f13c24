"""The numbers of a run, as they are written down and shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from hornbook.base.console import Progress
from hornbook.infer.score import Score
from hornbook.runs.folder import RunFolder
from hornbook.train.metrics import RATE_OVER_STEPS, Metrics, StepReading


def reading(step: int) -> StepReading:
    """A thousand tokens each quarter of a second, a hundred steps in all."""
    return StepReading(
        step=step, first_sample=4 * step, tokens=1000 * step, lr_factor=0.5, seconds=step / 4, progress=step / 100
    )


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def metrics(tmp_path: Path, shown: io.StringIO) -> Metrics:
    return Metrics(RunFolder(tmp_path), Progress(shown, live=True), flops_per_token=6_000, peak_flops=96e6, kept=None)


def test_a_step_is_a_line_with_these_numbers(metrics: Metrics, tmp_path: Path) -> None:
    metrics.launched(reading(3), torch.tensor(2.5), torch.tensor(0.75))
    assert metrics.arrived() == [(reading(3), 2.5, 0.75)]
    metrics.evaluated(3, 3000, 0.8, Score(loss=2.0, perplexity=7.389, bits_per_byte=2.885, tokens=100), whole=True)
    metrics.sampled(3, "a", "b")
    metrics.sync()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 3, "tokens": 3000, "loss": 2.5, "gradient_length": 0.75, "lr_factor": 0.5, "seconds": 0.75},
        {
            "step": 3, "tokens": 3000, "val_loss": 2.0, "val_perplexity": 7.389, "val_bits_per_byte": 2.885,
            "val_tokens": 100, "seconds": 0.8,
        },
    ]  # fmt: skip
    assert json.loads((tmp_path / "samples.jsonl").read_text()) == {"step": 3, "prompt": "a", "text": "b"}


def test_rate_and_share_of_the_peak_follow_from_the_last_steps(metrics: Metrics) -> None:
    """4,000 tokens a second of 6,000 operations each are 24 million: a quarter of 96 million."""
    assert metrics.tokens_per_second() == 0.0
    for step in range(1, RATE_OVER_STEPS + 20):
        metrics.launched(reading(step), torch.tensor(1.0), torch.tensor(1.0))
        metrics.arrived()
    assert metrics.tokens_per_second() == pytest.approx(4000)
    assert metrics.mfu() == pytest.approx(0.25)


def test_where_the_peak_is_not_known_there_is_no_share_of_it(tmp_path: Path) -> None:
    metrics = Metrics(
        RunFolder(tmp_path), Progress(io.StringIO(), live=False), flops_per_token=6_000, peak_flops=None, kept=None
    )
    assert metrics.mfu() is None


def test_the_progress_line_tells_rate_share_and_time_left(
    metrics: Metrics, shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("hornbook.base.console.LIVE_EVERY_SECONDS", 0.0)
    for step in range(1, 26):
        metrics.launched(reading(step), torch.tensor(2.0), torch.tensor(1.0))
        metrics.arrived()
    last = shown.getvalue().rsplit("\r", 1)[1]
    # A quarter of the run took 6.25 seconds, so three times that is left.
    assert last.split("  ")[:6] == ["step 25", "loss 2.000", "4k tokens/s", "25% MFU", "25%", "19s left"]


def test_resuming_cuts_the_logs_back_to_the_lengths_that_were_kept(metrics: Metrics, tmp_path: Path) -> None:
    for step in (1, 2):
        metrics.launched(reading(step), torch.tensor(1.0), torch.tensor(1.0))
    metrics.arrived()
    kept = metrics.sync()
    metrics.launched(reading(3), torch.tensor(1.0), torch.tensor(1.0))
    metrics.arrived()
    metrics.close()
    again = Metrics(RunFolder(tmp_path), Progress(io.StringIO(), live=False), 1, None, kept)
    again.launched(reading(4), torch.tensor(1.0), torch.tensor(1.0))
    again.arrived()
    again.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 4]

"""The numbers of a run, as they are written down and shown."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.base.console import Progress
from hornbook.infer.score import Score
from hornbook.runs.folder import RunFolder
from hornbook.train.config import RunConfig
from hornbook.train.cuda_graph import StepTensors
from hornbook.train.metrics import RATE_OVER_STEPS, SHOWN_LOSSES, Metrics, StepNumbers, StepReading, passed


def numbers(loss: float, length: float) -> StepTensors:
    return StepTensors(*(torch.tensor(each) for each in (loss, length, 0.0, 1.0, math.nan)))


def reading(step: int, epoch_samples: int = 40, **more: Any) -> StepReading:
    """A thousand tokens each quarter of a second, a hundred steps of four samples in all."""
    return StepReading(
        step=step,
        first_sample=4 * (step - 1),
        tokens=1000 * step,
        lr_factor=0.5,
        seconds=step / 4,
        progress=step / 100,
        before=(step - 1) / 100,
        epochs=4 * step / epoch_samples,
        **more,
    )


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def metrics(tmp_path: Path, shown: io.StringIO) -> Metrics:
    return Metrics(RunFolder(tmp_path), Progress(shown, live=True), flops_per_token=6_000, peak_flops=96e6, kept=None)


def test_a_step_is_a_line_with_these_numbers(metrics: Metrics, tmp_path: Path) -> None:
    third = reading(3, rates={"lr": 0.002})
    metrics.queue(third, numbers(2.5, 0.75)._replace(update=torch.tensor(0.125)))
    assert metrics.collect() == [(third, StepNumbers(2.5, 0.75, spike=0, scale=1, update=0.125))]
    metrics.evaluated(3, 3000, 0.3, 0.8, Score(loss=2.0, perplexity=7.389, bits_per_byte=2.885, tokens=100), whole=True)
    metrics.sampled(3, "a", "b")
    metrics.sync()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {
            "step": 3, "tokens": 3000, "epochs": 0.3, "loss": 2.5, "grad_norm": 0.75, "lr_factor": 0.5, "lr": 0.002,
            "seconds": 0.75, "update_ratio": 0.125,
        },
        {
            "step": 3, "tokens": 3000, "epochs": 0.3, "val_loss": 2.0, "val_perplexity": 7.389,
            "val_bits_per_byte": 2.885, "val_tokens": 100, "seconds": 0.8,
        },
    ]  # fmt: skip
    assert json.loads((tmp_path / "samples.jsonl").read_text()) == {"step": 3, "prompt": "a", "text": "b"}


def test_rate_and_share_of_the_peak_follow_from_the_last_steps(metrics: Metrics) -> None:
    """4,000 tokens a second of 6,000 operations each are 24 million: a quarter of 96 million."""
    assert metrics.tokens_per_second() == 0.0
    for step in range(1, RATE_OVER_STEPS + 20):
        metrics.queue(reading(step), numbers(1.0, 1.0))
        metrics.collect()
    assert metrics.tokens_per_second() == pytest.approx(4000)
    assert metrics.mfu() == pytest.approx(0.25)


def test_where_the_peak_is_not_known_there_is_no_share_of_it(tmp_path: Path) -> None:
    metrics = Metrics(
        RunFolder(tmp_path), Progress(io.StringIO(), live=False), flops_per_token=6_000, peak_flops=None, kept=None
    )
    assert metrics.mfu() is None


def last_line(metrics: Metrics, shown: io.StringIO, losses: list[float], **more: Any) -> list[str]:
    for step, loss in enumerate(losses, 1):
        metrics.queue(reading(step, **more), numbers(loss, 1.0))
        metrics.collect()
    return shown.getvalue().rsplit("\r", 1)[1].strip().split("  ")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("hornbook.base.console.LIVE_EVERY_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
def test_the_progress_line_tells_rate_share_and_time_left(metrics: Metrics, shown: io.StringIO) -> None:
    # A quarter of the run took 6.25 seconds, so three times that is left. In step 25 the third epoch of ten steps is
    # being read.
    expected = ["epoch 3", "step 25", "loss 2.000", "4k tokens/s", "25%", "19s left", "25% MFU"]
    assert last_line(metrics, shown, [2.0] * 25) == expected


@pytest.mark.usefixtures("at_once")
def test_the_progress_line_tells_the_mean_of_the_last_64_losses(metrics: Metrics, shown: io.StringIO) -> None:
    assert SHOWN_LOSSES == 64
    losses = [9.0] * 10 + [math.nan] + [1.0, 3.0] * 32
    assert last_line(metrics, shown, losses)[2] == "loss 2.000"
    assert last_line(metrics, shown, [66.0])[2] == "loss 3.016", "one of 64 was 1 and is 66"


@pytest.mark.usefixtures("at_once")
def test_memory_taken_stands_in_the_line_and_in_the_log(metrics: Metrics, shown: io.StringIO, tmp_path: Path) -> None:
    line = last_line(metrics, shown, [2.0], memory=(3_750_000_000, 12_740_000_000))
    assert line[-1] == "3.75 of 12.74 GB"
    assert last_line(metrics, shown, [2.0])[-1] == "3.75 of 12.74 GB", "not every step looks"
    metrics.sync()
    looked, not_looked = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (looked["memory_bytes"], looked["memory_total_bytes"]) == (3_750_000_000, 12_740_000_000)
    assert "memory_bytes" not in not_looked


def test_the_end_of_an_epoch_and_the_drop_of_the_rate_are_told() -> None:
    """Nine steps of two samples make an epoch of the book's text; the batch of the last tiny one holds four."""
    config = RunConfig.model_validate({"train": {"steps": 1}, "optim": {"lr": 5e-4}})
    told = [list(passed(config, reading(step, 36), 36)) for step in range(1, 28)]
    assert {step: lines for step, lines in enumerate(told, 1) if lines} == {
        9: ["epoch 1 finished in step 9"],
        18: ["epoch 2 finished in step 18"],
        27: ["epoch 3 finished in step 27"],
    }
    assert list(passed(config, reading(2, 1), 1)) == [f"epoch {epoch} finished in step 2" for epoch in (5, 6, 7, 8)]
    assert sum(bool(list(passed(config, reading(step, 4), 4))) for step in range(1, 1001)) == 100 + 9
    dropping = config.with_(schedule={"kind": "drop", "drop_step": 20, "final_share": 0.1})
    by_share = config.with_(schedule={"kind": "drop", "drop_share": 0.2, "final_share": 0.1})
    for each in (dropping, by_share, by_share.with_(optim={"lr": 2.5e-4, "lr_scale": 2.0})):
        told = [list(passed(each, reading(step, 1000), 1000)) for step in range(1, 101)]
        assert {step: lines for step, lines in enumerate(told, 1) if lines} == {
            20: ["learning rate dropped to 5e-05, 0.1 of its height, after step 20"]
        }
    never = config.with_(schedule={"kind": "drop", "drop_step": 100})
    assert not any(list(passed(never, reading(step, 1000), 1000)) for step in range(1, 101))


def test_resuming_cuts_the_logs_back_to_the_lengths_that_were_kept(metrics: Metrics, tmp_path: Path) -> None:
    for step in (1, 2):
        metrics.queue(reading(step), numbers(1.0, 1.0))
    metrics.collect()
    kept = metrics.sync()
    metrics.queue(reading(3), numbers(1.0, 1.0))
    metrics.collect()
    metrics.close()
    again = Metrics(RunFolder(tmp_path), Progress(io.StringIO(), live=False), 1, None, kept)
    again.queue(reading(4), numbers(1.0, 1.0))
    again.collect()
    again.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 4]

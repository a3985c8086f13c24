"""A recorded step is the step that it was recorded from. The recording itself is CUDA's; here a list of calls stands in
for it, so that what is around it is judged on any machine: which batch, which seed, which rate, what happens when it
fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.model.gpt import GPT
from hornbook.runs.logs import read_log
from hornbook.shards.order import Batch
from hornbook.train import cuda_graph, learner
from hornbook.train.config import RunConfig
from hornbook.train.start import fit


def recording(act: Callable[[], cuda_graph.StepTensors]) -> tuple[Callable[[], None], cuda_graph.StepTensors]:
    places = cuda_graph.StepTensors(*(torch.zeros(()) for _ in cuda_graph.StepTensors._fields))

    def replay() -> None:
        for place, number in zip(places, act(), strict=True):
            place.copy_(number)

    return replay, places


def losses(folder: Path) -> list[float]:
    return [each["loss"] for each in read_log(folder / "metrics.jsonl") if "loss" in each]


@pytest.fixture
def trained(tiny: Callable[..., RunConfig], tmp_path: Path) -> Callable[..., list[float]]:
    def train(name: str, **knobs: Any) -> list[float]:
        fit(tiny(model={"dropout": 0.1}, train={"steps": 12, **knobs}), tmp_path / name)
        return losses(tmp_path / name)

    return train


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_recorded_step_learns_what_a_step_learns(
    dtype: str, trained: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches, dropout and learning rates of each step are its own, and so is the scale of the loss, which here falls
    until it fits: in micro-batches too, that do not divide the batch."""
    monkeypatch.setattr("hornbook.train.precision.FIRST_SCALE", 2.0**32)
    plain, replayed = trained("plain", micro_batch=3, dtype=dtype), []
    replay = cuda_graph._Record.replay

    def counted(record: cuda_graph._Record, batch: Batch, factor: float) -> cuda_graph.StepTensors:
        replayed.append(factor)
        return replay(record, batch, factor)

    monkeypatch.setattr(learner, "RECORDED_ON", ("cpu",))
    monkeypatch.setattr(cuda_graph, "_recorded", recording)
    monkeypatch.setattr(cuda_graph._Record, "replay", counted)
    assert trained("recorded", micro_batch=3, dtype=dtype) == pytest.approx(plain, rel=1e-5)
    assert len(replayed) == 12 - cuda_graph.STEPS_BEFORE


def test_out_of_memory_while_recording_leaves_the_micro_batch_as_it_is(
    trained: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is memory for the step, only not for a second time: and while recording, none can be given back."""
    plain, recording_now = trained("plain"), []
    embedded = GPT.embed

    def fail(act: Callable[[], cuda_graph.StepTensors]) -> None:
        recording_now.append(True)
        try:
            act()
        finally:
            recording_now.clear()

    def short_of_memory(*words: Any) -> torch.Tensor:
        if recording_now:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embedded(*words)

    monkeypatch.setattr(learner, "RECORDED_ON", ("cpu",))
    monkeypatch.setattr(learner, "is_recording", lambda device: bool(recording_now))
    monkeypatch.setattr(cuda_graph, "_recorded", fail)
    monkeypatch.setattr(GPT, "embed", short_of_memory)
    assert trained("unrecorded") == pytest.approx(plain, rel=1e-5)
    told = capsys.readouterr().err
    assert told.count("this step cannot be recorded (CUDA out of memory)") == 1
    assert "sequences at once" not in told


def test_a_step_that_cannot_be_recorded_goes_on_as_it_is(
    trained: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = trained("plain")

    def fail(act: Callable[[], cuda_graph.StepTensors]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(learner, "RECORDED_ON", ("cpu",))
    monkeypatch.setattr(cuda_graph, "_recorded", fail)
    assert trained("unrecorded") == pytest.approx(plain, rel=1e-5)
    assert capsys.readouterr().err.count("this step cannot be recorded (CUDA out of memory)") == 1

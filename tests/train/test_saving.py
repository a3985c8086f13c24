"""A checkpoint written beside training is the one that training would have waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trial import all_of, settle, tiniest

from hornbook.base import files
from hornbook.base.errors import MachineError
from hornbook.runs.folder import RunFolder
from hornbook.train import saving
from hornbook.train.checkpoint import Learned, TrainState
from hornbook.train.saving import Saver
from hornbook.train.start import fit


class Writer:
    """Writes into a list, once it may."""

    def __init__(self) -> None:
        self.may, self.begun = threading.Event(), threading.Event()
        self.written: list[tuple[Learned, TrainState, threading.Thread]] = []
        self.error: Exception | None = None

    def __call__(self, learned: Learned, state: TrainState) -> None:
        self.begun.set()
        assert self.may.wait(60)
        if self.error is not None:
            raise self.error
        self.written.append((learned, state, threading.current_thread()))


@pytest.fixture
def writer() -> Iterator[Writer]:
    each = Writer()
    yield each
    each.may.set()
    settle()


@pytest.fixture
def learner() -> Any:
    """Of two weights, which are tied, and a moment."""
    embedding = torch.nn.Embedding(3, 2)
    weights = {"embedding.weight": embedding.weight.detach(), "head.weight": embedding.weight.detach()}
    model = SimpleNamespace(embedding=embedding, config=SimpleNamespace(n_params=lambda: 6))
    return SimpleNamespace(model=model, kept_weights=lambda: dict(weights), tensors=lambda: {"moment": moment})


moment = torch.zeros(6)


def test_what_is_written_is_what_was_learned_when_it_was_asked_for(learner: Any, writer: Writer) -> None:
    weight = learner.model.embedding.weight.detach()
    before, state = weight.clone(), TrainState(step=5, logs={"metrics.jsonl": 7})
    with Saver(learner, writer, 0) as saver:
        saver.begin(state)
        weight += 1
        state.step, state.logs["metrics.jsonl"] = 6, 8
        assert saver.saved_step == 0
        writer.may.set()
        saver.wait()
        assert saver.saved_step == 5
    ((learned, written, thread),) = writer.written
    assert thread is not threading.current_thread()
    assert torch.equal(learned.weights["embedding.weight"], before)
    assert learned.weights["head.weight"] is learned.weights["embedding.weight"]  # tied ones are copied once
    assert (written.step, written.logs) == (5, {"metrics.jsonl": 7})


def test_one_is_written_at_a_time_and_the_end_waits_for_the_last(learner: Any, writer: Writer) -> None:
    with Saver(learner, writer, 0) as saver:
        saver.begin(TrainState(step=1))
        writer.begun.wait(60)
        second = threading.Thread(target=saver.begin, args=(TrainState(step=2),))
        second.start()
        second.join(0.05)
        assert second.is_alive()
        writer.may.set()
        second.join(60)
    assert [state.step for _, state, _ in writer.written] == [1, 2]
    assert saver.saved_step == 2


def test_what_goes_wrong_is_raised_at_the_next_look(learner: Any, writer: Writer) -> None:
    writer.error = MachineError("the disk is full")
    with Saver(learner, writer, 0) as saver:
        saver.begin(TrainState(step=1))
        saver.raise_errors()  # it is still being written
        writer.may.set()
        while saver._writing is not None and not saver._writing.done():
            pass
        with pytest.raises(MachineError, match="full"):
            saver.raise_errors()
    assert saver.saved_step == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_who_asks_to_leave_at_once_does_and_an_error_waits(
    error: type[BaseException], learner: Any, writer: Writer
) -> None:
    timer = threading.Timer(0.05, writer.may.set)

    def end_by_it() -> None:
        with Saver(learner, writer, 0) as saver:
            saver.begin(TrainState(step=1))
            writer.begun.wait(60)
            if error is RuntimeError:
                timer.start()
            raise error

    with pytest.raises(error):
        end_by_it()
    assert bool(writer.written) == (error is RuntimeError)


def whole(run: Path) -> dict[str, Any]:
    """All files of the newest checkpoint; of its state, all but the clock's."""
    (newest, *_) = RunFolder(run).checkpoints()
    state = files.read_json(newest / "state.json")
    hashes = {
        each.name: files.sha256(each) for each in newest.iterdir() if each.name not in ("state.json", files.MANIFEST)
    }
    del state["seconds"], state["logs"]  # a log tells the time in more or fewer digits
    return hashes | state


def test_where_memory_is_short_training_waits_and_the_checkpoints_are_the_same(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = set()
    save_checkpoint = saving.Saver._save

    def saved(*words: Any) -> None:
        threads.add(threading.current_thread())
        save_checkpoint(*words)

    monkeypatch.setattr(saving.Saver, "_save", saved)
    fit(tiniest(short_text), tmp_path / "beside")
    assert threading.current_thread() not in threads
    monkeypatch.setattr(saving, "free_memory_bytes", lambda _: 1000)
    threads.clear()
    capsys.readouterr()
    fit(tiniest(short_text), tmp_path / "waited")
    assert threads == {threading.current_thread()}
    assert capsys.readouterr().err.count("training waits while it is saved") == 1
    assert whole(tmp_path / "beside") == whole(tmp_path / "waited")
    assert all_of(tmp_path / "beside") == all_of(tmp_path / "waited")


def test_memory_that_runs_out_for_the_copy_costs_nothing_but_time(
    learner: Any, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: Learned) -> Learned:
        raise torch.OutOfMemoryError("host")

    monkeypatch.setattr(Learned, "copied", none_left)
    writer.may.set()
    with Saver(learner, writer, 0) as saver:
        saver.begin(TrainState(step=1))
        assert saver.saved_step == 1
    assert writer.written[0][2] is threading.current_thread()


def test_the_best_weights_go_with_the_next_checkpoint_unless_it_is_better_itself(learner: Any, writer: Writer) -> None:
    weight = learner.model.embedding.weight.detach()
    writer.may.set()
    with Saver(learner, writer, 0) as saver:
        assert saver.remember_best(TrainState(step=2, val_loss=1.5))
        before = weight.clone()
        weight += 1
        saver.begin(TrainState(step=3, best_step=2))
        saver.begin(TrainState(step=4, best_step=2))
        assert saver.remember_best(TrainState(step=5, val_loss=1.4))
        saver.begin(TrainState(step=6, best_step=6))
    first, second, third = (learned.best for learned, _, _ in writer.written)
    assert first is not None
    assert (first.step, first.val_loss) == (2, 1.5)
    assert torch.equal(first.weights["embedding.weight"], before)
    assert second is third is None


def test_best_weights_that_could_not_be_written_are_tried_again_and_newer_ones_take_their_place(
    learner: Any, writer: Writer
) -> None:
    writer.error = MachineError("the disk is full")
    with Saver(learner, writer, 0) as saver:
        saver.remember_best(TrainState(step=1))
        saver.begin(TrainState(step=2, best_step=1))
        writer.may.set()
        with pytest.raises(MachineError):
            saver.wait()
        writer.error = None
        writer.may.clear()
        saver.begin(TrainState(step=3, best_step=1))
        saver.remember_best(TrainState(step=4))  # while the one before is being written
        writer.may.set()
        saver.begin(TrainState(step=5, best_step=4))
    assert [each.best and each.best.step for each, _, _ in writer.written] == [1, 4]

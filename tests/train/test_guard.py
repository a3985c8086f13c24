"""What must not end a run, and what must end it well."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trial import all_of, good_checkpoints, losses, metrics, tiniest

from hornbook.base.errors import UserError
from hornbook.base.machine import free_cache, is_out_of_memory
from hornbook.model.folder import load_model
from hornbook.model.gpt import GPT
from hornbook.runs.folder import RunFolder
from hornbook.train import learner, loop, muon
from hornbook.train.guard import (
    NON_FINITE_IN_A_ROW,
    NonFiniteGuard,
    StopSignals,
)
from hornbook.train.learner import Learner
from hornbook.train.optim import Optimizer
from hornbook.train.optim_config import OPTIMIZERS
from hornbook.train.start import fit, resume

Watched = list[tuple[int, bool]]


def copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watched]:
    """Makes the loss or the gradients of some steps not finite; notes of each step whether it changed anything."""

    def poison(steps: set[int], where: str, value: float) -> Watched:
        watched: Watched = []
        clip, update, cross_entropy = learner.clip_grad_norm, Optimizer.step, GPT.loss
        learned: list[torch.nn.Parameter] = []

        def due(here: str) -> bool:
            return where == here and len(watched) + 1 in steps

        def loss_of(*words: Any) -> torch.Tensor:
            return cross_entropy(*words) * (value if due("loss") else 1.0)

        def clipped(parameters: list[torch.nn.Parameter], *how: Any) -> torch.Tensor:
            learned[:] = parameters
            if due("gradient"):
                assert parameters[-1].grad is not None
                parameters[-1].grad.view(-1)[0] = value
            return clip(parameters, *how)

        def updated(self: Optimizer, factor: float, skip: torch.Tensor) -> None:
            weights, moments = [each.detach().clone() for each in learned], copied(self.tensors())
            update(self, factor, skip)
            now = self.tensors()
            same = all(torch.equal(before, after) for before, after in zip(weights, learned, strict=True))
            # AdamW makes its moments in the first step; in one that is left out they stay at zero.
            same &= all(torch.equal(moments.get(name, torch.zeros_like(now[name])), now[name]) for name in now)
            watched.append((len(watched) + 1, same))

        monkeypatch.setattr(learner, "clip_grad_norm", clipped)
        monkeypatch.setattr(GPT, "loss", loss_of)
        monkeypatch.setattr(Optimizer, "step", updated)
        return watched

    return poison


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("where", "value"), [("loss", float("nan")), ("gradient", float("nan")), ("gradient", float("inf"))]
)
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(
    optimizer: str,
    where: str,
    value: float,
    poisoned: Callable[..., Watched],
    short_text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    watched = poisoned({1, 4}, where, value)
    fit(tiniest(short_text, optim={"kind": optimizer}, train={"steps": 6}), tmp_path / "run")
    assert watched == [(1, True), (2, False), (3, False), (4, True), (5, False), (6, False)]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: step")]
    assert [line.split(":")[1] for line in told] == [" step 1", " step 4"]
    assert "samples 12 to 15" in told[1]


def test_a_step_left_out_is_as_if_it_had_not_been_for_all_that_is_learned(
    poisoned: Callable[..., Watched], short_text: Path, tmp_path: Path
) -> None:
    """Weights and moments after a last step that was left out are those of a run that ended before it."""
    knobs = {"save_every_steps": 1, "eval_every_steps": 100}
    constant = {"kind": "constant", "warmup_steps": 0}
    fit(tiniest(short_text, schedule=constant, train={"steps": 3} | knobs), tmp_path / "three")
    poisoned({4}, "gradient", float("nan"))
    fit(tiniest(short_text, schedule=constant, train={"steps": 4} | knobs), tmp_path / "four")
    assert all_of(tmp_path / "four")[2] == all_of(tmp_path / "three")[2]


def test_too_many_in_a_row_end_the_run_with_finite_weights_saved(
    poisoned: Callable[..., Watched], short_text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    poisoned(set(range(3, 100)), "loss", float("nan"))
    knobs = {"steps": 50, "save_every_steps": 100, "eval_every_steps": 100}
    with pytest.raises(UserError, match=rf"step {NON_FINITE_IN_A_ROW + 2}: not finite for 10 steps .* lower --optim"):
        fit(tiniest(short_text, train=knobs), run)
    assert good_checkpoints(run) == [NON_FINITE_IN_A_ROW + 2]
    model = load_model(RunFolder(run).checkpoints()[0])
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_count_of_steps_in_a_row_outlives_an_interruption(
    poisoned: Callable[..., Watched], short_text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    poisoned(set(range(1, 100)), "loss", float("nan"))
    constant = {"kind": "constant"}
    fit(tiniest(short_text, schedule=constant, train={"steps": 6, "eval_every_steps": 100}), run)
    with pytest.raises(UserError, match=f"step {NON_FINITE_IN_A_ROW}: not finite for"):
        resume(run, {"train": {"steps": 60}})


def test_in_fp16_the_count_begins_when_the_scale_can_fall_no_further(
    poisoned: Callable[..., Watched], short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hornbook.train.precision.FIRST_SCALE", 16.0)
    watched = poisoned(set(range(1, 100)), "gradient", float("inf"))
    told = f"step {NON_FINITE_IN_A_ROW + 4}: not finite for 10 steps in a row.* or --train.dtype float32"
    with pytest.raises(UserError, match=told):
        fit(tiniest(short_text, train={"steps": 50, "dtype": "float16", "eval_every_steps": 100}), tmp_path / "run")
    assert all(unchanged for _, unchanged in watched)


def test_a_finite_step_begins_the_count_anew(capsys: pytest.CaptureFixture[str]) -> None:
    guard = NonFiniteGuard()
    for step in range(100):
        guard.count(step, 0, 1, finite=step % NON_FINITE_IN_A_ROW == 0)
    assert guard.in_a_row == NON_FINITE_IN_A_ROW - 1


class SmallMemory:
    """A model's trunk that has memory for so many sequences at once, but no more."""

    def __init__(self, room: int, error: Exception) -> None:
        self.sizes: list[int] = []
        self._room = room
        self._error = error

    def wrap(self, learner: Learner) -> None:
        """In place of `Learner.prepare`."""
        vars(learner._working.model).pop("hidden", None)
        hidden = learner._working.model.hidden

        def tried(ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
            if not learner._working.model.training:  # evaluations and samples
                return hidden(ids, cache)
            self.sizes.append(len(ids))
            if len(ids) > self._room:
                raise self._error
            return hidden(ids)

        learner._working.model.hidden = tried


FEW = {"steps": 4, "save_every_steps": 100, "eval_every_steps": 100, "snapshots": False}
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["accelerator", "cpu"])
def test_out_of_memory_halves_the_micro_batch_and_the_run_stays_the_same(
    error: Exception,
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    knobs = {"batch_tokens": 16 * 12, "steps": 5}
    small = tiniest(short_text, model={"dropout": 0.0}, train=knobs | {"micro_batch": 3})
    fit(small, tmp_path / "small")
    memory = SmallMemory(3, error)
    monkeypatch.setattr(Learner, "prepare", lambda learner: memory.wrap(learner))
    fit(small.with_(train={"micro_batch": 12}), tmp_path / "halved")
    assert memory.sizes == [12, 6, *[3] * 20]
    assert losses(tmp_path / "halved") == pytest.approx(losses(tmp_path / "small"), abs=1e-5)
    told = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert [line.split("going on with ")[1].split(",")[0] for line in told] == ["6", "3"]


def test_out_of_memory_with_one_sequence_is_the_users_to_mend(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SmallMemory(0, ERRORS[0])
    monkeypatch.setattr(Learner, "prepare", lambda learner: memory.wrap(learner))
    with pytest.raises(UserError, match=r"lower --model\.context"):
        fit(tiniest(short_text), tmp_path / "run")


def test_out_of_memory_while_compiling_halves_too(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def compiled(model: GPT, shape: tuple[int, int]) -> Callable[..., torch.Tensor]:
        tried.append(shape)
        if shape[0] > 1:
            raise torch.OutOfMemoryError
        return model.hidden

    monkeypatch.setattr("hornbook.train.learner.compiled_or_eager", compiled)
    fit(tiniest(short_text, train={"compile": True, "steps": 1}), tmp_path / "run")
    assert tried == [(4, 16), (2, 16), (1, 16)]


def test_out_of_memory_in_the_optimizers_first_step_halves_before_any_weight_has_changed(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several stacks of matrices the last has no room."""
    config = tiniest(short_text, model={"dropout": 0.0, "mlp_width": 24}, train=FEW | {"micro_batch": 1})
    fit(config, tmp_path / "one")
    orthogonalised, tried = muon.orthogonalised, []

    def short_of_memory(matrices: torch.Tensor, *words: Any) -> torch.Tensor:
        tried.append(tuple(matrices.shape))
        if len(tried) in (3, 6):
            raise ERRORS[0]
        return orthogonalised(matrices, *words)

    monkeypatch.setattr(muon, "orthogonalised", short_of_memory)
    fit(config.with_(train={"micro_batch": 4}), tmp_path / "run")
    assert len(set(tried[:3])) == 3
    assert losses(tmp_path / "run") == losses(tmp_path / "one")
    state = json.loads((RunFolder(tmp_path / "run").checkpoints()[0] / "state.json").read_text())
    assert state["micro_batch"] == 1


def test_a_sample_for_which_there_is_no_memory_is_left_out(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiniest(short_text, train=FEW | {"eval_every_steps": 2})
    fit(config, tmp_path / "peace")

    def short_of_memory(*_: Any, **__: Any) -> None:
        raise ERRORS[0]

    monkeypatch.setattr(loop, "generate", short_of_memory)
    capsys.readouterr()
    fit(config, tmp_path / "run")
    assert capsys.readouterr().err.count("out of memory in a sample") == 2
    assert losses(tmp_path / "run") == losses(tmp_path / "peace")


def test_an_evaluation_for_which_there_is_little_memory_is_the_same(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiniest(short_text, train=FEW | {"eval_every_steps": 2})
    fit(config, tmp_path / "peace")
    losses_of, sizes = GPT.losses, []

    def short_of_memory(model: GPT, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        if len(ids) > 2:
            raise ERRORS[0]
        return losses_of(model, ids, targets)

    monkeypatch.setattr(GPT, "losses", short_of_memory)
    fit(config, tmp_path / "run")
    assert max(sizes) > 2
    assert losses(tmp_path / "run") == losses(tmp_path / "peace")
    scores = [
        [each["val_loss"] for each in metrics(tmp_path / name) if "val_loss" in each] for name in ("run", "peace")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_out_of_memory_for_the_model_itself_is_the_users_to_mend(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(*_: Any, **__: Any) -> None:
        raise ERRORS[0]

    monkeypatch.setattr(learner, "Optimizer", short_of_memory)
    with pytest.raises(UserError, match=r"lower --model\.n-embd or --model\.n-layer"):
        fit(tiniest(short_text), tmp_path / "run")


def test_other_errors_are_not_taken_for_missing_memory(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SmallMemory(0, RuntimeError("shapes do not fit"))
    monkeypatch.setattr(Learner, "prepare", lambda learner: memory.wrap(learner))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fit(tiniest(short_text), tmp_path / "run")
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_an_error_in_a_later_step_keeps_the_steps_before_it(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, steps = tmp_path / "run", iter(range(100))

    def fails_in_step_three(*words: Any) -> torch.Tensor:
        if next(steps) == 2:
            raise RuntimeError("the device is gone")
        return cross_entropy(*words)

    cross_entropy = GPT.loss
    knobs = {"steps": 4, "save_every_steps": 100, "eval_every_steps": 100}
    fit(tiniest(short_text, train=knobs), tmp_path / "peace")
    monkeypatch.setattr(GPT, "loss", fails_in_step_three)
    with pytest.raises(RuntimeError, match="the device is gone"):
        fit(tiniest(short_text, train=knobs), run)
    assert good_checkpoints(run) == [2]
    resume(run)
    assert all_of(run) == all_of(tmp_path / "peace")


def test_an_error_in_the_middle_of_an_update_saves_nothing(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-changed weights must not pass for a step's."""
    update, steps = Optimizer.step, iter(range(1, 100))

    def torn_in_step_three(*words: Any) -> None:
        update(*words)
        if next(steps) == 3:
            raise RuntimeError("torn")

    monkeypatch.setattr(Optimizer, "step", torn_in_step_three)
    with pytest.raises(RuntimeError, match="torn"):
        fit(tiniest(short_text, train={"save_every_steps": 100, "eval_every_steps": 100}), tmp_path / "run")
    assert good_checkpoints(tmp_path / "run") == []


def test_an_error_after_a_save_leaves_that_checkpoint_alone(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing it again would put the only one at risk."""
    saves: list[int] = []
    save, cross_entropy = loop.save, GPT.loss

    def saved(run: loop.Run, *words: Any) -> None:
        save(run, *words)
        saves.append(run.state.step)

    def fails_after_two(*words: Any) -> torch.Tensor:
        if len(saves) == 2:
            raise RuntimeError("the device is gone")
        return cross_entropy(*words)

    monkeypatch.setattr(loop, "save", saved)
    monkeypatch.setattr(GPT, "loss", fails_after_two)
    with pytest.raises(RuntimeError, match="the device is gone"):
        fit(tiniest(short_text), tmp_path / "run")
    assert saves == [1, 2]


def test_a_signal_is_counted_and_the_third_leaves_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked == 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_terminal_that_is_closed_asks_once_however_often_it_is_told() -> None:
    with StopSignals() as signals:
        for _ in range(4):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.asked == 1
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_who_was_started_to_outlive_the_terminal_does() -> None:
    """As by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.asked == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_that_is_asked_to_stop_and_resumed_is_the_run_left_in_peace(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = (
        tiniest(short_text, train={"steps": 12, "save_every_steps": None, "eval_every_steps": 4}),
        tmp_path / "run",
    )
    fit(config, tmp_path / "peace")
    cross_entropy, calls = GPT.loss, iter(range(1, 1000))

    def asked_in_some(*words: Any) -> torch.Tensor:
        if next(calls) in (3, 4, 8):
            os.kill(os.getpid(), signal.SIGTERM)
        return cross_entropy(*words)

    monkeypatch.setattr(GPT, "loss", asked_in_some)
    assert fit(config, run).interrupted
    assert good_checkpoints(run) == [3]
    assert resume(run).interrupted
    assert resume(run).interrupted
    assert good_checkpoints(run)[0] == 8
    assert not resume(run).interrupted
    assert all_of(run) == all_of(tmp_path / "peace")


def test_memory_that_is_freed_is_given_back_before_trying_again(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    free_cache(torch.device("cpu"))
    assert not emptied
    free_cache(torch.device("cuda"))
    assert emptied

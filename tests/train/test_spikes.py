"""A step that stands out from all before it is left out, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trial import learned, losses, metrics, tiniest

from hornbook.train import learner, spikes
from hornbook.train.spikes import LEAST_NATS, LEAST_PART, MOST_IN_A_ROW, WINDOW, Spikes
from hornbook.train.start import fit, resume

DEVIATIONS = 20.0
CPU = torch.device("cpu")
Series = list[tuple[float, float]]


def by_numpy(series: Series, window: int = WINDOW) -> list[bool]:
    """The same in plain words, over a list."""
    finite: list[tuple[float, float]] = []
    in_a_row, told = 0, []
    for now in series:
        stands_out = False
        if len(finite) >= window and np.isfinite(now).all():
            before = np.array(finite[-window:])
            usual = np.median(before, axis=0)
            deviation = 1.4826 * np.median(np.abs(before - usual), axis=0)
            deviation = np.maximum(deviation, [LEAST_NATS, LEAST_PART * usual[1]])
            stands_out = bool((np.array(now) > usual + DEVIATIONS * deviation).any())
        told.append(stands_out and in_a_row < MOST_IN_A_ROW)
        in_a_row = in_a_row + 1 if told[-1] else 0
        if np.isfinite(now).all():
            finite.append(now)
    return told


def by_us(series: Series, guard: Spikes | None = None) -> list[bool]:
    guard = guard or Spikes(DEVIATIONS, CPU)
    return [bool(guard.check(torch.tensor(loss), torch.tensor(length))) for loss, length in series]


def a_run_with_wild_steps(seed: int) -> Series:
    """Falling losses with noise; now and then a wild step, several together, or one that is not finite."""
    chance = np.random.default_rng(seed)
    steps = np.arange(400)
    loss = 2 + 3 * np.exp(-steps / 100) + chance.normal(0, 0.05, 400)
    length = np.exp(chance.normal(0, 0.3, 400))
    for place in chance.integers(0, 400, 12):
        loss[place] += chance.choice([0.0, 1.0, 4.0, np.nan])
        length[place : place + chance.integers(1, 6)] *= chance.choice([1.0, 5.0, 100.0, np.inf])
    return list(zip(loss.tolist(), length.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_steps_are_judged_by_the_median_of_those_before(seed: int) -> None:
    series = a_run_with_wild_steps(seed)
    expected = by_numpy(series)
    assert by_us(series) == expected
    assert 0 < sum(expected) < 40


def test_a_lasting_change_is_learned_from_after_a_few_steps() -> None:
    series = [(2.0, 1.0)] * WINDOW + [(9.0, 50.0)] * 10
    assert by_us(series) == [False] * WINDOW + ([True] * MOST_IN_A_ROW + [False]) * 2 + [True, True]


def test_a_restored_guard_judges_as_the_one_that_was_saved() -> None:
    series, half = a_run_with_wild_steps(0), Spikes(DEVIATIONS, CPU)
    expected = by_us(series)
    assert by_us(series[:200], half) == expected[:200]
    saved = {name: tensor.clone() for name, tensor in half.tensors().items()}
    resumed = Spikes(DEVIATIONS, CPU)
    resumed.restore(saved)
    assert saved == {}
    assert by_us(series[200:], resumed) == expected[200:]
    Spikes(DEVIATIONS, CPU).restore({})  # of a version that had none


@pytest.fixture
def wild(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives the gradients of a step one number that is far too large, after five steps to look back on."""

    def make(step: int) -> None:
        clip, steps = learner.clip_grad_norm, iter(range(1, 1000))

        def clipped(parameters: list[torch.nn.Parameter], *how: Any) -> torch.Tensor:
            if next(steps) == step:
                assert parameters[-1].grad is not None
                parameters[-1].grad.view(-1)[0] = 1e4
            return clip(parameters, *how)

        monkeypatch.setattr(learner, "clip_grad_norm", clipped)

    monkeypatch.setattr(spikes, "WINDOW", 5)
    return make


CALM: dict[str, Any] = {"schedule": {"kind": "constant", "warmup_steps": 0}}
SELDOM = {"steps": 9, "save_every_steps": 3, "eval_every_steps": 100}


def test_a_spike_of_gradients_is_left_out_and_named(
    wild: Callable[[int], None], short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tiniest(short_text, **CALM, train=SELDOM | {"steps": 7}), tmp_path / "seven")
    wild(8)
    fit(tiniest(short_text, **CALM, train=SELDOM | {"steps": 8}), tmp_path / "eight")
    weights = "model.safetensors"
    assert learned(tmp_path / "eight")[weights] == learned(tmp_path / "seven")[weights]
    assert [each["step"] for each in metrics(tmp_path / "eight") if each.get("left_out")] == [8]
    told = capsys.readouterr().err
    assert "warning: step 8: loss " in told
    assert "gradient 10,000.00, far beyond the steps before; left out (samples 28 to 31)" in told


def test_a_run_without_a_spike_is_the_run_without_the_guard(
    wild: Callable[[int], None], short_text: Path, tmp_path: Path
) -> None:
    config = tiniest(short_text, train=SELDOM)
    fit(config, tmp_path / "with")
    fit(config.with_(optim={"spike": None}), tmp_path / "without")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert learned(tmp_path / "with")["model.safetensors"] == learned(tmp_path / "without")["model.safetensors"]


def test_what_it_looks_back_on_outlives_an_interruption(
    wild: Callable[[int], None], short_text: Path, tmp_path: Path
) -> None:
    """The spike comes sooner after the resume than a new guard would notice one."""
    config = tiniest(short_text, **CALM, train=SELDOM)
    wild(8)
    fit(config, tmp_path / "peace")
    wild(8)
    fit(config.with_(train={"steps": 6}), tmp_path / "run")
    resume(tmp_path / "run", {"train": {"steps": 9}})
    entries = [[each for each in metrics(run) if "loss" in each] for run in (tmp_path / "run", tmp_path / "peace")]
    assert [each["step"] for each in entries[0] if each.get("left_out")] == [8]
    assert [each["loss"] for each in entries[0]] == [each["loss"] for each in entries[1]]
    assert learned(tmp_path / "run") == learned(tmp_path / "peace")


def test_a_spike_is_no_overflow(wild: Callable[[int], None], short_text: Path, tmp_path: Path) -> None:
    """The scale of the loss stays, in numbers in which it is scaled."""
    wild(8)
    fit(tiniest(short_text, **CALM, train=SELDOM | {"dtype": "float16"}), tmp_path / "run")
    steps = [each for each in metrics(tmp_path / "run") if "loss" in each]
    assert [each["step"] for each in steps if each.get("left_out")] == [8]
    assert len({each["loss_scale"] for each in steps}) == 1

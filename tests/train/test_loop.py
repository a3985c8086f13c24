"""The loop does what it says: it learns, stops, looks and saves when it should."""

from __future__ import annotations

import io
import math
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trial import all_of, exact, good_checkpoints, learned, losses, metrics, tiniest

from effort import long
from hornbook.base.console import Progress
from hornbook.base.files import read_json
from hornbook.infer.score import Score
from hornbook.report.curves import draw as draw_pictures
from hornbook.runs.folder import RunFolder, resolve
from hornbook.runs.logs import read_log
from hornbook.shards.format import Shards
from hornbook.train import loop
from hornbook.train.config import RunConfig
from hornbook.train.start import fit, resume

QUIET: dict[str, Any] = {"save_every_steps": 1000, "eval_every_steps": 1000, "sample_every_steps": 1000}
CONSTANT = {"kind": "constant", "warmup_steps": 0}


def steps(run: Path, kind: str = "loss") -> list[int]:
    return [entry["step"] for entry in metrics(run) if kind in entry]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("optimizer", ["muon", pytest.param("adamw", marks=long)])
def test_a_model_of_a_markov_source_comes_within_two_percent_of_its_entropy(optimizer: str, tmp_path: Path) -> None:
    """Eight letters, each drawn by the one before it: no model can need less than the entropy rate."""
    chance = np.random.default_rng(5)
    transitions = chance.dirichlet(np.full(8, 0.6), size=8)
    stationary = np.linalg.matrix_power(transitions, 1000)[0]
    entropy = -float(stationary @ (transitions * np.log(transitions)).sum(axis=1))
    cumulative, letters = transitions.cumsum(axis=1).tolist(), [0]
    for draw in chance.random(300_000).tolist():
        letters.append(min(bisect_left(cumulative[letters[-1]], draw), 7))
    text = tmp_path / "markov.txt"
    text.write_text("".join("abcdefgh"[letter] for letter in letters))
    config = tiniest(
        text,
        tokenizer={"kind": "char"},
        model={"n_embd": 32, "mlp_width": 32, "context": 32, "dropout": 0.0},
        optim={"kind": optimizer, "lr": 0.01},
        schedule={"warmup_steps": 10},
        train=QUIET | {"steps": 250, "batch_tokens": 1024},
    )
    fit(config, tmp_path / "run")
    reached = [entry["val_loss"] for entry in metrics(tmp_path / "run") if "val_loss" in entry][-1]
    assert entropy > 1.0
    assert reached == pytest.approx(entropy, rel=0.02)


# The losses of the run below, from a Xeon with AVX512 and torch 2.13. To renew them, after a change that is meant to
# change what is learned: print(losses(tmp_path / "run")) at the end of the test.
GOLDEN = [5.555875, 5.480604, 5.355457, 5.146857, 4.953775, 4.759740, 4.626060, 4.562980, 4.485415, 4.442569]


def test_the_first_ten_losses_are_those_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that bears on them is written here, so that another default does not move them."""
    monkeypatch.setattr(Shards, "fingerprint", "golden")  # the order of samples, whatever library wrote the tokenizer
    text = tmp_path / "sums.txt"
    text.write_text("".join(f"{n} and {n + 7} are {n + n + 7}.\n" for n in range(200)))
    config = RunConfig.model_validate(
        {
            "data": str(text),
            "seed": 11,
            "tokenizer": {"kind": "byte"},
            "order": {"kind": "windows"},
            "model": {
                "n_layer": 2, "n_head": 2, "n_embd": 16, "mlp_width": 32, "context": 16, "init": "gpt2",
                "norm": "rmsnorm", "norm_eps": 1e-6, "activation": "swiglu", "positions": "rotary", "qk_norm": "before",
                "biases": [], "tied": False,
            },
            "optim": {
                "kind": "muon", "lr": 0.01, "matrix_lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "beta1": 0.9,
                "beta2": 0.95, "eps": 1e-8, "clip": 1.0,
            },
            "schedule": {"kind": "cosine", "warmup_steps": 3, "final_share": 0.1},
            "train": QUIET | {
                "steps": 10, "batch_tokens": 128, "device": "cpu", "dtype": "float32", "compile": False, "threads": 1,
            },
        }
    )  # fmt: skip
    fit(config, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(GOLDEN, rel=1e-4)


def test_one_line_for_each_step_and_each_evaluation(short_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(tiniest(short_text, train={"steps": 6, "eval_every_steps": 4}), run)
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert steps(run, "val_loss") == [4, 6]
    assert [entry["tokens"] for entry in metrics(run) if "loss" in entry] == [64 * step for step in range(1, 7)]
    for entry in metrics(run):
        if "val_loss" in entry:
            assert entry["val_perplexity"] == pytest.approx(math.exp(entry["val_loss"]))
            # With `byte` a token is a byte, but for the end of text, which is predicted too.
            assert entry["val_bits_per_byte"] == pytest.approx(entry["val_loss"] / math.log(2), rel=0.01)
    seconds = [entry["seconds"] for entry in metrics(run)]
    assert seconds == sorted(seconds)


def test_looking_saving_and_sampling_keep_their_own_times(short_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cadence = {"eval_every_steps": 3, "sample_every_steps": 5, "save_every_steps": 4, "keep_checkpoints": 99}
    fit(tiniest(short_text, train={"steps": 10} | cadence), run)
    assert steps(run, "val_loss") == [3, 6, 9, 10]
    assert [entry["step"] for entry in read_log(run / "samples.jsonl")] == [5, 10]
    assert sorted(good_checkpoints(run)) == [4, 8, 10]
    best = read_json(run / "checkpoints" / "step-00000010" / "state.json")["best_step"]
    assert best in steps(run, "val_loss")
    assert resolve(run).name == f"step-{best:08}"


def test_left_alone_a_run_evaluates_and_samples_ten_times(short_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    alone = dict.fromkeys(("eval_every_steps", "save_every_steps", "sample_every_steps"))
    fit(tiniest(short_text, train={"steps": 30, "batch_tokens": 512} | alone), run)
    assert steps(run, "val_loss") == list(range(3, 31, 3))
    assert [entry["step"] for entry in read_log(run / "samples.jsonl")] == list(range(3, 31, 3))


def test_how_often_one_looks_does_not_change_what_is_learned(short_text: Path, tmp_path: Path) -> None:
    config = tiniest(short_text, train={"steps": 12, "eval_every_steps": 1})
    fit(config, tmp_path / "often")
    fit(config.with_(train=QUIET), tmp_path / "never")
    assert losses(tmp_path / "often") == losses(tmp_path / "never")
    assert learned(tmp_path / "often") == learned(tmp_path / "never")


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ({"steps": 5}, 5),
        ({"tokens": 5 * 64}, 5),
        ({"tokens": 5 * 64 + 1}, 6),
        # 1,711 tokens in windows of 16, shifted: 105 of them an epoch, four a step.
        ({"epochs": 1.0}, 27),
        ({"epochs": 0.5}, 14),
        ({"epochs": 2.0, "steps": 30}, 30),
        ({"epochs": 1.0, "steps": 30}, 27),
    ],
    ids=str,
)
def test_a_run_stops_where_its_first_stop_is(
    stop: dict[str, Any], expected: int, short_text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = fit(tiniest(short_text, train=QUIET | {"steps": None} | stop), run)
    assert (outcome.step, outcome.reason) == (expected, "done")
    assert steps(run)[-1] == expected
    assert good_checkpoints(run) == [expected]
    assert steps(run, "val_loss") == [expected]


def test_a_run_stops_when_its_minutes_are_over(short_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = fit(tiniest(short_text, train=QUIET | {"steps": None, "minutes": 0.02}), run)
    seconds = [entry["seconds"] for entry in metrics(run) if "loss" in entry]
    assert seconds[-1] >= 1.2 >= seconds[-2]
    assert (outcome.reason, outcome.step) == ("done", len(seconds))
    assert resume(run).reason == "nothing left to do"


def test_a_run_stops_at_the_first_step_that_reaches_its_target(short_text: Path, tmp_path: Path) -> None:
    config = tiniest(short_text, optim={"lr": 0.03}, schedule=CONSTANT, train=QUIET | {"steps": 40})
    fit(config, tmp_path / "all")
    curve, run = losses(tmp_path / "all"), tmp_path / "run"
    target = curve[20]
    first = next(number for number, loss in enumerate(curve, start=1) if loss <= target)
    outcome = fit(config.with_(train={"steps": None, "target_loss": target}), run)
    assert outcome.reason.startswith("reached target loss")
    assert outcome.step == first
    assert losses(run) == curve[:first]
    assert resume(run).reason == "nothing left to do"
    assert resume(run, {"train": {"target_loss": target - 0.3}}).step > first


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations come to these losses, one after the other."""
    losses = iter([3.0, 2.0, 2.5, 2.0, math.nan, 2.2, 1.9, 2.1, 2.3, 2.2, 2.4, 2.5])
    monkeypatch.setattr(loop, "score", lambda *_, **__: Score(next(losses), 1.0, 1.0, 100))


OFTEN: dict[str, Any] = {"eval_every_steps": 2, "save_every_steps": 100, "keep_checkpoints": 1, "patience": 3}


def test_a_run_stops_when_its_evaluations_do_not_become_better(
    evaluated: None, short_text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = fit(tiniest(short_text, train=OFTEN | {"steps": 100}), run)
    assert (outcome.step, outcome.interrupted) == (10, False)
    assert outcome.reason == "no better validation loss in 3 evaluations (best: 2.0000 in step 4)"
    assert good_checkpoints(run) == [10]
    assert resolve(run).name == "step-00000004"
    assert [entry["step"] for entry in read_log(run / "samples.jsonl")][-1] == 10
    assert resume(run).reason == "nothing left to do"
    # More patience sees it become better, and then no better for longer; the learning rate goes on as it would have.
    outcome = resume(run, {"train": {"patience": 5}})
    assert outcome.reason == "no better validation loss in 5 evaluations (best: 1.9000 in step 14)"
    assert [entry["lr_factor"] for entry in metrics(run) if "loss" in entry] == [0.5, *[1.0] * 23]


def test_patience_outlives_an_interruption(evaluated: None, short_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fit(tiniest(short_text, train=OFTEN | {"steps": 8}), run).reason == "done"
    outcome = resume(run, {"train": {"steps": 100}})
    assert (outcome.step, outcome.reason[:38]) == (10, "no better validation loss in 3 evaluat")


def test_resuming_a_finished_run_changes_nothing(short_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(tiniest(short_text), run)
    before = all_of(run)
    outcome = resume(run)
    assert (outcome.reason, outcome.step) == ("nothing left to do", 4)
    assert all_of(run) == before


def test_a_run_that_is_given_more_steps_is_the_longer_run(short_text: Path, tmp_path: Path) -> None:
    """Where the learning rate does not depend on the end."""
    config = tiniest(short_text, schedule=CONSTANT, train={"steps": 14, "eval_every_steps": 7})
    fit(config, tmp_path / "long")
    fit(config.with_(train={"steps": 7}), tmp_path / "short")
    resume(tmp_path / "short", {"train": {"steps": 14}})
    assert all_of(tmp_path / "short") == all_of(tmp_path / "long")
    assert read_json(tmp_path / "short" / "run.json")["config"]["train"]["steps"] == 14


def test_the_same_config_twice_is_the_same_run_and_another_seed_is_not(short_text: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        fit(tiniest(short_text, seed=seed), tmp_path / name)
    assert exact(metrics(tmp_path / "one")) == exact(metrics(tmp_path / "two"))
    assert learned(tmp_path / "one") == learned(tmp_path / "two")
    assert losses(tmp_path / "one") != losses(tmp_path / "other")


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 8])
def test_how_a_batch_is_cut_does_not_change_what_is_learned(micro_batch: int, short_text: Path, tmp_path: Path) -> None:
    """Eight sequences, also where the pieces do not divide them evenly."""
    knobs = QUIET | {"steps": 6, "batch_tokens": 128}
    config = tiniest(short_text, model={"dropout": 0.0}, train=knobs | {"micro_batch": 8})
    fit(config, tmp_path / "whole")
    fit(config.with_(train={"micro_batch": micro_batch}), tmp_path / "cut")
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_epochs_and_the_accelerators_memory_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hornbook.train.loop.memory_in_use", lambda device: (4_000_000_000, 16_000_000_000))
    text, shown = tmp_path / "text.txt", io.StringIO()
    text.write_text("abcdefgh" * 100)
    config = tiniest(text, order={"kind": "windows"}, train=QUIET | {"steps": 12})
    fit(config, tmp_path / "run", Progress(shown, live=False))
    shards = Shards.open(RunFolder(tmp_path / "run").record().shards)
    windows = (len(shards.split("train")) - 1) // 16
    trained = [entry for entry in metrics(tmp_path / "run") if "loss" in entry]
    assert [entry["epochs"] for entry in trained] == [round(4 * step / windows, 6) for step in range(1, 13)]
    assert f"epoch 1 finished in step {-(-windows // 4)}" in shown.getvalue().splitlines()
    assert [entry["step"] for entry in trained if "memory_bytes" in entry] == [1, 11]
    assert draw_pictures(tmp_path / "run")[-1].name == "memory.png"

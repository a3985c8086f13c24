"""The doctor on runs that are trained here: what is done wrong to one is found, and healthy ones are left alone."""

from __future__ import annotations

import itertools
import random
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from effort import long
from hornbook.cli import main
from hornbook.infer import score
from hornbook.model.gpt import GPT
from hornbook.model.layers import MLP
from hornbook.report.doctor import examine
from hornbook.runs.logs import read_log
from hornbook.shards import order
from hornbook.train import learner
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ate", "rat", "while", "rain", "fell", "over", "hills"]
Train = Callable[..., list[str]]


@pytest.fixture
def train(tiny: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    """Trains, and tells which rules spoke at the end. What was told on the way is in `told`."""

    def train(**knobs: Any) -> list[str]:
        run = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        knobs["train"] = {"steps": 60, "eval_every_steps": 20, "snapshots": False} | knobs.get("train", {})
        fit(tiny(**knobs), run)
        return [each.rule for each in examine(run)]

    return train


def words_of(count: int, seed: int = 0) -> str:
    chance = random.Random(seed)
    return " ".join(chance.choices(WORDS, k=count))


@pytest.mark.parametrize(("scale", "rule"), [(40, "learning-rate-too-high"), (0.005, "learning-rate-too-low")])
def test_a_learning_rate_that_is_far_off_is_found(
    train: Train, scale: float, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rule in train(optim={"lr_scale": scale})
    assert capsys.readouterr().out.count("The learning rate is too ") == 1  # told on the way, once


def test_the_usual_learning_rate_is_left_alone(train: Train) -> None:
    assert train() == []


def test_a_text_learned_by_heart_is_found(train: Train, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    chance = random.Random(0)
    text.write_text("".join(chance.choice("abcdefghij ") for _ in range(3_000)))  # in which nothing is to be learned
    knobs: dict[str, Any] = {"data": str(text), "model": {"n_embd": 64}}
    found = train(**knobs, train={"steps": 120})
    assert "overfits" in found
    assert "overfits" not in train(**knobs, train={"steps": 20, "eval_every_steps": 10})


def test_a_model_too_large_for_its_text_is_found(train: Train, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text(words_of(500))
    wide = {"n_embd": 128}
    assert "too-little-text" in train(data=str(text), model=wide, train={"steps": 2, "eval_every_steps": 1})
    text.write_text(words_of(5000))
    assert "too-little-text" not in train(data=str(text), model=wide, train={"steps": 2, "eval_every_steps": 1})


def test_validation_text_in_the_training_text_is_found(train: Train, tmp_path: Path, some_text: str) -> None:
    text = tmp_path / "copied.txt"
    few: dict[str, Any] = {"data": str(text), "train": {"steps": 2, "eval_every_steps": 1}}
    text.write_text(some_text[:40_000] + some_text[10_000:14_000])
    assert "validation-in-training" in train(**few)
    text.write_text(some_text[:44_000])
    assert "validation-in-training" not in train(**few)


def test_ends_of_documents_that_are_characters_are_found(train: Train, tmp_path: Path, some_text: str) -> None:
    text = tmp_path / "stories.txt"
    few: dict[str, Any] = {"data": str(text), "train": {"steps": 2, "eval_every_steps": 1}}
    stories = [some_text[at : at + 500] for at in range(0, 30_000, 500)]
    text.write_text("<|endoftext|>".join(stories))
    assert "document-boundary" in train(**few)
    text.write_text("\n\n".join(stories))
    assert "document-boundary" not in train(**few)


def test_a_vocabulary_too_large_for_the_text_is_found(train: Train) -> None:
    few: dict[str, Any] = {"train": {"steps": 2, "eval_every_steps": 1}}
    assert "vocabulary" in train(tokenizer={"kind": "bpe", "vocab_size": 4096}, **few)
    assert "vocabulary" not in train(tokenizer={"kind": "bpe", "vocab_size": 512}, **few)


def test_targets_that_are_the_inputs_are_found(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    split = order.split_windows

    def off_by_one(windows: torch.Tensor, device: torch.device) -> order.Batch:
        ids, _ = split(windows, device)
        return ids, ids

    for module in (order, score):
        monkeypatch.setattr(module, "split_windows", off_by_one)
    assert "sees-ahead" in train(train={"head_start": False, "steps": 100})


@pytest.fixture
def one_mlp_times(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """From here on the last MLP adds so many times what it should."""
    forward, untrained = MLP.forward, learner.untrained

    def times(factor: float) -> None:
        def marked(config: Any) -> GPT:
            model = untrained(config)
            model.blocks[1].mlp.factor = factor  # type: ignore[union-attr]
            return model

        monkeypatch.setattr(learner, "untrained", marked)
        monkeypatch.setattr(MLP, "forward", lambda mlp, x: forward(mlp, x) * getattr(mlp, "factor", 1.0))

    return times


@pytest.mark.parametrize(
    ("factor", "found"), [(0, ["dead-layer"]), (0.3, []), (30, []), (1000, ["exploding-layer"])], ids=str
)
def test_a_layer_that_does_nothing_or_explodes_is_found(
    train: Train, one_mlp_times: Callable[[float], None], factor: float, found: list[str]
) -> None:
    one_mlp_times(factor)
    assert train() == found


def test_a_run_stopped_too_early_is_found_and_better_once_gone_on_with(train: Train, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text(words_of(100_000))
    short: dict[str, Any] = {"steps": 40, "eval_every_steps": 20}
    assert train(data=str(text), train=short) == []  # it began by knowing which token follows which
    assert train(data=str(text), train=short | {"head_start": False}) == ["still-improves"]
    [found] = examine(tmp_path / "run-1")
    [(said, instead)] = re.findall(r"would bring about ([\d.]+) in place of ([\d.]+)", found.evidence)
    [told] = re.findall("`hornbook (resume .*)`", found.action)
    assert main(shlex.split(told)) == 0
    reached = min(each["val_loss"] for each in read_log(tmp_path / "run-1" / "metrics.jsonl") if "val_loss" in each)
    assert reached < float(said) < float(instead)


def test_a_run_that_waits_for_its_text_is_found(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by ten seconds whenever a batch is begun or ended."""
    clock = itertools.count(0, 10)
    monkeypatch.setattr(order, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    assert "bound-by-input" in train(train={"steps": 4, "eval_every_steps": 2})


SMALL, WIDE, DEEP = {"n_embd": 32}, {"n_embd": 96, "n_head": 3}, {"n_layer": 4, "n_embd": 48}
BYTE, BPE, CHAR = {"kind": "byte"}, {"kind": "bpe", "vocab_size": 512}, {"kind": "char"}
HEALTHY: list[dict[str, Any]] = [
    {"model": SMALL},
    {"model": WIDE},
    {"model": DEEP},
    {"model": SMALL, "tokenizer": BPE},
    {"model": WIDE, "tokenizer": BPE},
    {"model": DEEP, "tokenizer": CHAR},
    {"model": SMALL, "tokenizer": CHAR, "seed": 2},
    {"model": SMALL, "optim": {"kind": "adamw"}},
    {"model": WIDE, "optim": {"kind": "adamw"}, "tokenizer": BPE},
    {"model": SMALL, "optim": {"kind": "adamw", "lr": 1e-3}},
    {"model": SMALL | {"dropout": 0.1}, "words": True},
    {"model": WIDE, "words": True, "schedule": {"kind": "cosine"}},
    {"model": DEEP, "words": True, "tokenizer": BPE, "schedule": {"kind": "constant"}},
]


@long
@pytest.mark.parametrize("knobs", HEALTHY, ids=str)
def test_a_healthy_run_has_no_findings(train: Train, tmp_path: Path, knobs: dict[str, Any]) -> None:
    if "words" in knobs:
        text = tmp_path / "words.txt"
        text.write_text(words_of(30_000))
        knobs = {name: value for name, value in knobs.items() if name != "words"} | {"data": str(text)}
    assert train(**knobs, train={"steps": 240, "eval_every_steps": 40}) == []

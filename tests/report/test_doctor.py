"""Each of the doctor's rules: a run that provokes it, and one close by that does not; healthy runs have no findings.

The numbers are those of small runs that were trained for it: 400 steps of 226,000 parameters on a megabyte of
Shakespeare, at a thousandth to a hundred times their usual learning rate. Those that are trained here stand in
tests/train/test_doctor_on_runs.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hornbook.report.doctor import RULES, Doctor, examine, findings
from hornbook.report.observed import Observed, TextFacts

STEPS = 400
TEXT = TextFacts(
    folder=Path("shards"),
    kind="bpe",
    vocab_size=1024,
    tokens=400_000,
    bytes_of_text=1_000_000,
    documents=1,
    looked_at=400_000,
    used=1020,
    unknown=0,
    ends=1,
    marks={},
    twins={"documents": 0, "compared": 100},
    yardsticks={"gzip -9": 3.2, "xz -9": 2.9},
)
CONFIG: dict[str, Any] = {
    "data": "text.txt",
    "model": {"dropout": 0.0},
    "optim": {"lr_scale": 1.0},
    "schedule": {"warmup_steps": 20},
    "train": {"steps": STEPS},
}
Curve = Callable[[float], float]


def falling(at: float) -> float:
    """As the loss of a run that learned what it could in its time."""
    return 3.3 + 0.6 * math.exp(-4 * at)


def recorded(
    loss: Curve = falling,
    val: Curve | None = None,
    update: Curve = lambda at: 0.02,
    text: TextFacts | None = TEXT,
    readings: float = 0.2,
    knobs: dict[str, Any] | None = None,
    of_steps: dict[str, Any] | None = None,
    of_evaluations: dict[str, Any] | None = None,
    **more: Any,
) -> Observed:
    """What a run writes, from its curves over shares of itself, and what every step or evaluation has besides."""
    run = Observed(Path("runs/x"), CONFIG | (knobs or {}), {"device": "cpu"}, text, 200_000, **more)
    for step in range(1, STEPS + 1):
        at = step / STEPS
        entry = {"step": step, "tokens": 256 * step, "epochs": readings * at, "loss": loss(at), "grad_norm": 1.0}
        entry |= {"lr_factor": min(1, 2 - 2 * at), "seconds": step / 10}
        entry |= {"update_ratio": update(at)} if step % 20 == 10 else {}
        run.add([entry | (of_steps or {} if step % 100 == 50 else {})])
        if step % 40 == 0:
            evaluated = {"step": step, "val_loss": (val or loss)(at), "val_bits_per_byte": 0.8 * (val or loss)(at)}
            evaluated |= {"seconds": step / 10, "layer_rms": [1.0, 1.6, 1.9], "attention_added": [0.9, 0.2]}
            run.add([evaluated | {"mlp_added": [0.2, 0.1]} | (of_evaluations or {})])
    return run


def bowl(at: float) -> float:
    """A validation loss that is best at six tenths."""
    return 3.4 + 2 * (at - 0.6) ** 2


read_twice = partial(recorded, readings=2.0)
LARGE = replace(TEXT, vocab_size=50_257)
# By a rule's name, what provokes it and what comes close.
RUNS: dict[str, list[tuple[Observed, Observed]]] = {
    "overfits": [
        (read_twice(val=bowl), read_twice(val=lambda at: 3.4 + 2 * max(0.95 - at, 0) ** 2)),
        (read_twice(val=bowl, over=False), read_twice(val=lambda at: 3.4 + 2 * (at - 0.85) ** 2, over=False)),
        (read_twice(val=bowl), recorded(val=bowl)),  # of which a fifth was read
    ],
    "still-improves": [
        (recorded(lambda at: 3 / (0.1 + at) ** 0.5), recorded(lambda at: 4 / (0.1 + at) ** 0.1)),
        (recorded(lambda at: 3 / (0.1 + at) ** 0.5), recorded(lambda at: 3 / (0.1 + at) ** 0.5, readings=5.0)),
        (recorded(lambda at: 3 / (0.1 + at) ** 0.5), recorded(lambda at: 3 / (0.1 + at) ** 0.5, over=False)),
    ],
    "learning-rate-too-high": [
        (recorded(update=lambda at: 0.13 if at < 0.1 else 0.04), recorded(update=lambda at: 0.044)),
        (
            recorded(lambda at: 4.2 + (0.5 if 0.1 < at < 0.5 else 0) - at),
            recorded(lambda at: 4.2 + (0.1 if 0.1 < at < 0.5 else 0) - at),
        ),
        (
            recorded(lambda at: 4.2 + (0.5 if 0.1 < at < 0.5 else 0) - at),
            recorded(lambda at: 4.2 + (0.5 if 0.1 < at < 0.5 else 0) - at, val=falling),  # a harder part of its text
        ),
        (recorded(of_steps={"left_out": True}), recorded()),
        (recorded(of_steps={"loss": None}), recorded()),
    ],
    "learning-rate-too-low": [
        (recorded(update=lambda at: 2e-4), recorded(update=lambda at: 2e-3)),
        (recorded(update=lambda at: 2e-4), recorded(update=lambda at: 2e-4, knobs={"start_from": "runs/base"})),
    ],
    "exploding-layer": [
        (
            recorded(of_evaluations={"layer_rms": [1.2, 620.0, 640.0]}),
            recorded(of_evaluations={"layer_rms": [1.1, 18.0, 20.0]}),
        ),
        (recorded(of_evaluations={"layer_rms": [1.2, None, None]}), recorded()),
    ],
    "dead-layer": [
        (
            recorded(of_evaluations={"mlp_added": [0.2, 2e-4]}),
            recorded(of_evaluations={"mlp_added": [0.2, 5e-3]}),
        ),
        (
            recorded(of_evaluations={"mlp_added": [0.2, 2e-4]}),
            # Where none has begun, none is dead.
            recorded(of_evaluations={"mlp_added": [2e-4, 2e-4], "attention_added": [2e-4, 2e-4]}),
        ),
    ],
    "too-little-text": [
        (recorded(text=replace(TEXT, bytes_of_text=4_000)), recorded(text=replace(TEXT, bytes_of_text=6_000))),
        (
            recorded(text=replace(TEXT, bytes_of_text=4_000)),
            recorded(text=replace(TEXT, bytes_of_text=4_000), knobs={"start_from": "runs/base"}),
        ),
    ],
    "vocabulary": [
        (recorded(text=LARGE), recorded(text=replace(LARGE, tokens=4_000_000, bytes_of_text=12_000_000))),
        (
            recorded(text=replace(LARGE, tokens=4_000_000, bytes_of_text=6_000_000)),
            recorded(text=replace(TEXT, tokens=400_000, bytes_of_text=600_000)),
        ),
        (recorded(text=replace(TEXT, unknown=20_000)), recorded(text=replace(TEXT, unknown=400))),
    ],
    "bound-by-input": [
        (recorded(of_evaluations={"input_seconds": 2.0}), recorded(of_evaluations={"input_seconds": 0.6})),
    ],
    "validation-in-training": [
        (
            recorded(text=replace(TEXT, twins={"documents": 30, "compared": 100})),
            recorded(text=replace(TEXT, twins={"documents": 3, "compared": 100})),
        ),
        (
            recorded(text=replace(TEXT, twins={"documents": 0, "compared": 1, "passages": 0.4})),
            recorded(text=replace(TEXT, twins={"documents": 0, "compared": 1, "passages": 0.05})),
        ),
    ],
    "document-boundary": [
        (
            recorded(text=replace(TEXT, marks={"<|endoftext|>": 12})),
            recorded(text=replace(TEXT, marks={"<|endoftext|>": 1})),
        ),
        (
            recorded(text=replace(TEXT, documents=900, ends=0)),
            recorded(text=replace(TEXT, documents=900, ends=900)),
        ),
    ],
    "sees-ahead": [
        (
            recorded(of_evaluations={"val_bits_per_byte": 0.02}),
            recorded(of_evaluations={"val_bits_per_byte": 1.0}),
        ),
    ],
}


def names(run: Observed) -> list[str]:
    return [each.rule for each in findings(run)]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_provoked_by_its_run_and_not_by_one_close_by(rule: str) -> None:
    for provoking, close_by in RUNS[rule]:
        assert names(provoking) == [rule]
        assert names(close_by) == []


@pytest.mark.parametrize("rule", RULES)
def test_a_finding_is_in_words_that_stand_by_themselves(rule: str) -> None:
    """A title without a full stop, what it rests on with a figure or a name, and one thing to do."""
    [found] = findings(RUNS[rule][0][0])
    assert found.title[0].isupper()
    assert not any(part.endswith(".") for part in (found.title, found.evidence, found.action))
    assert any(letter.isdigit() for letter in found.evidence)
    assert found.action[0].isupper()
    assert len(found.line()) < 480


def test_copies_are_to_be_left_out_of_a_text_of_ones_own_alone() -> None:
    for data, advice in (("my-text.txt", "Leave the copies out"), ("python-stdlib", "of the same corpus alone")):
        run = recorded(text=replace(TEXT, twins={"documents": 30, "compared": 100}), knobs={"data": data})
        found = RULES["validation-in-training"](run)
        assert found is not None
        assert advice in found.action


def test_a_run_of_which_nothing_is_known_has_no_findings(tmp_path: Path) -> None:
    assert examine(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "tokens": 1, "loss": 5.0}) + "\n")
    assert examine(tmp_path) == []


def test_while_a_run_goes_each_finding_is_told_once(tmp_path: Path) -> None:
    doctor = Doctor(tmp_path)
    with open(tmp_path / "metrics.jsonl", "w") as log:
        told = []
        for step in range(1, 61):
            loss = None if step > 20 else 5.0
            log.write(json.dumps({"step": step, "tokens": step, "loss": loss}) + "\n")
            log.flush()
            told += [(step, each.rule) for each in doctor.new_findings()]
    assert told == [(21, "learning-rate-too-high")]


def test_a_mistake_of_the_doctor_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RULES, "overfits", lambda run: 1 / 0)  # type: ignore[arg-type, return-value]
    assert Doctor(tmp_path).new_findings() == []
    assert "training goes on" in capsys.readouterr().err

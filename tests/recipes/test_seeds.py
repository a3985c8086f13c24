"""The recipes of systems that came before hold the figures that were published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hornbook.base.logs import read_log
from hornbook.recipes import compose
from hornbook.shards.order import SampleOrder
from hornbook.shards.prepare import open_or_prepare
from hornbook.text.gpt2 import RANKS
from hornbook.train.config import RunConfig
from hornbook.train.start import fit, fitted_to

SMALLER: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 8}


@pytest.fixture(scope="session")
def on_local_text(test_data: Path) -> Callable[..., RunConfig]:
    """A recipe with GPT-2's vocabulary, on a text that is here."""

    def on(name: str, text: str, **knobs: Any) -> RunConfig:
        for needed in (RANKS, text):
            if not (test_data / needed).is_file():
                pytest.skip(f"no {needed} among the test data")
        local = {"data": str(test_data / text), "tokenizer": {"ranks_file": str(test_data / RANKS)}}
        return compose(name, local | knobs)

    return on


def test_the_verdict_is_cut_as_in_the_book(on_local_text: Callable[..., RunConfig]) -> None:
    config = on_local_text("the-verdict", "the-verdict.txt")
    shards = open_or_prepare(config.data, config.tokenizer, config.shards)
    config = fitted_to(shards, config)
    train, val = shards.split("train"), shards.split("val")
    assert len(shards.tokenizer.decode(train.read(0, len(train)).tolist())) == 18_431
    # Ours has an end-of-text id after each.
    assert (len(train) - 1, len(val) - 1) == (4_612, 534)
    assert train.read(0, 5).tolist() == [40, 367, 2885, 1464, 1807]
    order = SampleOrder(config.order, config.seed, shards.fingerprint, len(train), config.window, config.sequences)
    assert (config.sequences, order.samples_per_epoch) == (2, 18)
    assert sorted(order.places(np.arange(18)).tolist()) == list(range(0, 4_608, 256))
    assert (len(val) - 1) // config.window * config.window == 512


def test_the_verdict_evaluates_and_samples_when_the_book_does(
    on_local_text: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Its steps, numbered from 0, were evaluated after their update: 0, 5, 10 are 1, 6, 11 here."""
    config = on_local_text("the-verdict", "the-verdict.txt", model=SMALLER, train={"epochs": 2, "device": "cpu"})
    fit(config, tmp_path / "run")
    log = read_log(tmp_path / "run" / "metrics.jsonl")
    assert len([each for each in log if "loss" in each]) == 18
    assert [each["step"] for each in log if "val_loss" in each] == [0, 1, 6, 11, 16, 18]
    samples = read_log(tmp_path / "run" / "samples.jsonl")
    assert [each["step"] for each in samples] == [9, 18]
    assert {each["prompt"] for each in samples} == {"Every effort moves you"}

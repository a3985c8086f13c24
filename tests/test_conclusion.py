"""What is said when a run has ended: in plain words, with commands that fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hornbook.cli.conclusion import in_plain_words, what_next
from hornbook.runs.folder import Record
from hornbook.train.config import RunConfig
from hornbook.train.start import Outcome

BEST = {"val_perplexity": 25.3, "val_bits_per_byte": 2.0}


@pytest.mark.parametrize(
    ("yardsticks", "said"),
    [
        ({"gzip -9": 2.5, "xz -9": 2.2}, "better than gzip -9 and xz -9 do"),
        ({"gzip -9": 2.5, "xz -9": 1.9}, "still predicted better by xz -9 (1.90), though better than by gzip -9"),
        ({"gzip -9": 1.8, "xz -9": 1.5}, "still predicted better by gzip -9 (1.80): train longer"),
    ],
)
def test_the_loss_is_told_beside_what_compressors_make_of_the_text(yardsticks: dict[str, float], said: str) -> None:
    unsure, beside = in_plain_words(BEST, 4096, yardsticks, advised=False)
    assert "25 equally likely ones, of 4,096" in unsure
    assert said in beside
    assert "train longer" not in " ".join(in_plain_words(BEST, 4096, yardsticks, advised=True))


@pytest.mark.parametrize(
    ("end", "reached", "longer"),
    [
        ({"minutes": 10}, {}, "--minutes 20"),
        ({"minutes": 1000, "epochs": 3}, {"epochs": 3.0}, "--train.epochs 6"),
        ({"minutes": 1000, "steps": 60}, {}, "--train.steps 120"),
        ({"tokens": 30_720}, {}, "--train.tokens 61440"),
        ({"target_loss": 2.5}, {}, None),
    ],
    ids=str,
)
def test_what_to_try_next_fits_the_run(end: dict[str, Any], reached: dict[str, float], longer: str | None) -> None:
    outcome = Outcome(Path("runs/x"), "done", 60, 600.0, 1.0, None, 1)
    record = Record(RunConfig.model_validate({"train": {"batch_tokens": 512} | end}).model_dump(), Path("shards"), "")

    def told(worse: bool) -> list[str]:
        return list(what_next(outcome, record, reached.get("epochs", 0.0), "Once upon", worse))

    serve, generate, *others = told(worse=False)
    assert serve == "hornbook serve runs/x --open"
    assert generate == "hornbook generate runs/x --prompt 'Once upon'"
    assert others == [*([f"hornbook resume runs/x {longer}"] if longer else []), "hornbook train PATH/TO/YOUR/TEXT"]
    assert "resume" not in " ".join(told(worse=True))


def test_nobody_is_advised_to_learn_a_text_by_heart() -> None:
    """Of settings that were chosen for a text, how often it is read is a bound; who gave it may give another."""
    outcome = Outcome(Path("runs/x"), "done", 60, 600.0, 1.0, None, 1)
    config = RunConfig.model_validate({"recipe": "own-text", "train": {"epochs": 40, "minutes": 100}}).model_dump()
    for turned, advised in (((), False), (("train.epochs",), True)):
        record = Record(config, Path("shards"), "").with_(turned=turned)
        assert ("--train.epochs 80" in " ".join(what_next(outcome, record, 40.0, "Once", worse=False))) == advised

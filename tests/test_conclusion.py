"""What is said when a run has ended: in plain words, with commands that fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hornbook.cli.conclusion import in_plain_words, what_next
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
    unsure, beside = in_plain_words(BEST, 4096, yardsticks, None, 1.0)
    assert "25 equally likely ones, of 4,096" in unsure
    assert said in beside


def test_a_loss_that_rises_is_told_with_what_helps() -> None:
    assert list(in_plain_words(BEST, 4096, {}, None, 4.0))[1:] == []
    [_, told] = in_plain_words(BEST, 4096, {}, 1200, 4.0)
    assert "After step 1,200 it became worse" in told
    assert "--model.dropout" in told
    [_, told] = in_plain_words(BEST, 4096, {}, 4, 0.02)  # too early to know anything by heart
    assert "After step 4 it became worse" in told
    assert "by heart" not in told
    assert "--optim.lr-scale 0.5" in told


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
    config = RunConfig.model_validate({"train": {"batch_tokens": 512} | end}).model_dump()

    def told(rises: int | None) -> list[str]:
        return list(what_next(outcome, config, reached.get("epochs", 0.0), "Once upon", rises))

    serve, generate, *others = told(None)
    assert serve == "hornbook serve runs/x --open"
    assert generate == "hornbook generate runs/x --prompt 'Once upon'"
    assert others == [*([f"hornbook resume runs/x {longer}"] if longer else []), "hornbook train PATH/TO/YOUR/TEXT"]
    assert "resume" not in " ".join(told(rises=30))

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hornbook.base.console import Progress
from hornbook.base.errors import UserError
from hornbook.infer.evaluate import evaluate
from hornbook.infer.speaker import Speaker
from hornbook.shards.prepare import ShardsConfig, prepare
from hornbook.text.corpora import find_source
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train.config import RunConfig
from hornbook.train.start import fit


def test_a_run_evaluates_to_what_it_wrote_down(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(tiny(train={"steps": 20, "eval_every_steps": 5, "save_every_steps": 5, "keep_checkpoints": 9}), run, Progress())
    written = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    by_step = {each["step"]: each for each in written if "val_loss" in each}
    best = min(by_step.values(), key=lambda each: each["val_loss"])
    for at, expected in [("best", best), ("newest", by_step[20]), ("5", by_step[5])]:
        result = evaluate(run, None, at, device="cpu")
        assert result["loss"] == pytest.approx(expected["val_loss"], rel=1e-6)
        assert result["bits_per_byte"] == pytest.approx(expected["val_bits_per_byte"], rel=1e-6)
    assert by_step[5]["val_loss"] > best["val_loss"]


def test_a_text_of_ones_own_is_scored_with_the_end_of_each_document(speaker: Speaker, tmp_path: Path) -> None:
    for name, text in {"a.txt": "first text", "b.txt": "zwölf"}.items():
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_text(text)
    result = evaluate(speaker.folder, str(tmp_path / "texts"), device="cpu")
    text_bytes = len(b"first text") + len("zwölf".encode())
    assert result["tokens"] == text_bytes + 2
    assert result["bits_per_byte"] == pytest.approx(result["loss"] * 1.4426950408889634 * result["tokens"] / text_bytes)


def test_what_cannot_be_evaluated_is_told(speaker: Speaker, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the text: --data"):
        evaluate(speaker.folder, None, device="cpu")
    shards = tmp_path / "shards"
    prepare(find_source(str(text_file)), TokenizerConfig(kind="char"), ShardsConfig(), shards)
    with pytest.raises(UserError, match="prepared with another tokenizer"):
        evaluate(speaker.folder, str(shards), device="cpu")

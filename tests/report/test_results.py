"""Runs beside one another: by what they differ, who won, as a table and as a page."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hornbook
from hornbook.base.errors import UserError
from hornbook.cli import main
from hornbook.report import offline
from hornbook.report.comparison_page import write_comparison
from hornbook.report.results import as_csv, differing, groups_of, results_of, verdict
from hornbook.report.run_page import Told
from hornbook.train.config import RunConfig
from hornbook.train.start import fit


@pytest.fixture(scope="module")
def trained(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bytes, and pieces in larger batches and fewer steps; both on the same text."""
    runs = tmp_path_factory.mktemp("compared")
    fit(tiny(sample={"prompts": ["def "]}), runs / "bytes")
    pieces = {"tokenizer": {"kind": "bpe", "vocab_size": 512}, "train": {"batch_tokens": 512, "steps": 3}}
    fit(tiny(**pieces, sample={"prompts": ["def "]}), runs / "pieces")
    return runs


def told(runs: Path, *names: str) -> list[Told]:
    return [Told.of(runs / name) for name in names]


def test_of_different_batches_and_vocabularies_only_what_differs_is_told(trained: Path, tmp_path: Path) -> None:
    runs = told(trained, "bytes", "pieces")
    changed = {"tokenizer.kind", "tokenizer.vocab_size", "model.vocab_size", "train.batch_tokens", "train.steps"}
    assert set(differing(runs)) == changed
    first, second = map(results_of, runs)
    assert (first["tokens"], second["tokens"]) == (6 * 256, 3 * 512)
    assert (first["steps"], second["steps"]) == (6, 3)
    page = write_comparison(runs, tmp_path / "comparison.html").read_text()
    assert f"{first['bits_per_byte']:.4f}" in page
    assert page.count("<i>def </i>") == 2
    assert "tokenizer.kind" in page
    assert "model.n_layer" not in page


def test_as_csv_and_in_pandas_they_are_the_same(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pandas is a reader's, so something with its name stands in."""
    assert main(["report", str(trained / "bytes"), str(trained / "pieces"), "--to", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    rows: Any = hornbook.list_runs(trained)
    assert [row["run"] for row in table] == [row["run"] for row in rows] == ["bytes", "pieces"]
    assert [float(row["bits_per_byte"]) for row in table] == [row["bits_per_byte"] for row in rows]
    assert [row["train.batch_tokens"] for row in rows] == [256, 512]
    assert as_csv(told(trained, "bytes")).startswith("run,bits_per_byte")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        hornbook.list_runs(trained)


def of_seeds(runs: Path, tmp_path: Path, groups: dict[str, list[float]]) -> list[Told]:
    """Copies of a run, which came to these bits per byte; of each group only the seed differs."""
    copies = []
    for layers, (name, bits) in enumerate(groups.items(), 1):
        for seed, each in enumerate(bits, 1):
            run = tmp_path / f"{name}{seed}"
            shutil.copytree(runs / "bytes", run, ignore=shutil.ignore_patterns("checkpoints", "snapshots"))
            record = json.loads((run / "run.json").read_text())
            record["config"]["seed"], record["config"]["model"]["n_layer"] = seed, layers
            (run / "run.json").write_text(json.dumps(record))
            last: dict[str, Any] = {"step": 6, "tokens": 1536, "val_loss": each / 1.44, "val_bits_per_byte": each}
            step = {"step": 6, "tokens": 1536, "loss": 2.0}
            (run / "metrics.jsonl").write_text(json.dumps(step) + "\n" + json.dumps(last) + "\n")
            copies.append(Told.of(run))
    return copies


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        # Means 2.00 and 2.10, deviations of 0.01: their difference has a standard error of 0.0082, and 4 degrees of
        # freedom, so 0.023 are chance.
        ({"a": [1.99, 2.0, 2.01], "b": [2.09, 2.1, 2.11]}, "more than seeds alone would make of it, 0.023"),
        ({"a": [1.9, 2.0, 2.1], "b": [1.95, 2.05, 2.15]}, "are level: they are 0.050 bits per byte apart"),
        ({"a": [2.0], "b": [2.1]}, "Of one seed each, nobody can tell"),
        ({"a": [2.0, 2.1]}, "nothing to compare"),
    ],
)
def test_who_won_is_told_within_the_noise_of_seeds(
    trained: Path, tmp_path: Path, groups: dict[str, list[float]], said: str
) -> None:
    runs = of_seeds(trained, tmp_path, groups)
    assert [len(group.names) for group in groups_of(runs)] == [len(bits) for bits in groups.values()]
    assert said in verdict(runs)


def test_a_command_in_a_finding_is_one_on_the_page_and_nothing_else_is_markup() -> None:
    assert str(offline._code("`hornbook train <a>` & more")) == "<code>hornbook train &lt;a&gt;</code> &amp; more"

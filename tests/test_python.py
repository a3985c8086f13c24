"""What Python finds in `hornbook`: runs, wherever they were made."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hornbook
from hornbook.base.errors import UserError
from hornbook.report.curves import draw
from hornbook.train.config import OptimConfig, RunConfig
from hornbook.train.optim import grouped
from hornbook.train.optim_config import LEARNS_AT, OPTIMIZERS, learning_rates
from hornbook.train.start import fit

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python") / "run"
    fit(tiny(train={"eval_every_steps": 3, "eval_batches": 1}), folder)
    return folder


def test_a_run_is_opened_with_its_numbers_pictures_and_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = hornbook.open_run(run)
    assert len([each for each in opened.metrics() if "grad_norm" in each]) == 6
    assert opened.curves().steps == [1, 2, 3, 4, 5, 6]
    for picture in (opened.loss_curve(), opened.gradient_curve()):
        assert picture._repr_png_()[:4] == b"\x89PNG"
    assert opened.model().folder.parent.parent == run
    monkeypatch.chdir(run.parent)
    with pytest.raises(UserError, match=r"rnu: no run \(no run.json\); did you mean run\?"):
        hornbook.open_run("rnu")


def test_its_frame_has_a_row_a_step(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pandas is a reader's, so something with its name stands in."""
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    rows: Any = hornbook.open_run(run).frame()
    assert [each["step"] for each in rows] == [1, 2, 3, 4, 5, 6]
    assert ["val_loss" in each for each in rows] == [False, False, True, False, False, True]
    assert all("loss" in each for each in rows)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        hornbook.open_run(run).frame()


def test_every_field_is_documented(run: Path) -> None:
    table = re.findall(r"^\| (`.+?) \|", (ROOT / "docs" / "metrics.md").read_text(), flags=re.MULTILINE)
    documented = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    written = {name for each in hornbook.open_run(run).metrics() for name in each}
    assert written - documented == set()
    assert "train_loss" in written
    assert {"final_val_loss", "memory_bytes"} <= documented  # of runs that evaluate a part, or have an accelerator


def test_the_report_draws_all_of_it(run: Path) -> None:
    assert "gradients.png" in [picture.name for picture in draw(run, everything=True)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_rates_told_are_those_that_the_parameters_learn_at(kind: str, tiny: Callable[..., RunConfig]) -> None:
    from hornbook.model.init import outline

    config = OptimConfig(kind=kind, lr_scale=2.0, lr=0.003, embedding_lr=0.01, matrix_lr=0.02)
    model = tiny().model.with_(vocab_size=300)
    at = {name: group.lr for group, named in grouped(outline(model), config).items() for name in named}
    told = learning_rates(config, 0.5)
    assert set(told) == set(LEARNS_AT)
    expected = {"embedding_lr": at["embedding.weight"], "lr": next(at[name] for name in at if "norm" in name)}
    expected["matrix_lr"] = next(rate for name, rate in at.items() if name.startswith("blocks.") and "norm" not in name)
    assert told == {name: 0.5 * rate for name, rate in expected.items()}

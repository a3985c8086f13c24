from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.cli import main
from hornbook.report.listing import BYTES_LOOKED_AT, Standing, standings
from hornbook.runs.folder import RunFolder
from hornbook.runs.logs import read_log
from hornbook.train.config import RunConfig
from hornbook.train.start import fit


@pytest.fixture(scope="module")
def trained(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "done"
    fit(tiny(train={"steps": 4, "save_every_steps": 2, "eval_every_steps": 2}), run)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "runs" / "one")


def of(run: Path) -> Standing:
    (found,) = standings(run)
    return found


def told_otherwise(run: Path, **values: Any) -> None:
    state = RunFolder(run).checkpoints()[0] / "state.json"
    state.write_text(json.dumps(files.read_json(state) | values))


def test_a_run_that_is_done_is_told_with_its_losses_and_its_size(run: Path) -> None:
    entries, found = read_log(run / "metrics.jsonl"), of(run)
    assert (found.state, found.process, found.step) == ("done", None, 4)
    assert found.loss == [each["loss"] for each in entries if "loss" in each][-1]
    assert found.best_val_loss == min(each["val_loss"] for each in entries if "val_loss" in each)
    assert found.bytes == sum(each.stat().st_size for each in run.rglob("*") if each.is_file())
    for each in run.rglob("*"):
        os.utime(each, (0, 1000))
    os.utime(run / "metrics.jsonl", (0, 5000))
    assert of(run).seconds_since_written == pytest.approx(files.time.time() - 5000, abs=60)


@pytest.mark.parametrize(
    ("ended", "state"), [("", "interrupted"), ("interrupted", "interrupted"), ("failed", "failed"), ("done", "done")]
)
def test_how_a_run_ended_is_told(ended: str, state: str, run: Path) -> None:
    told_otherwise(run, ended=ended, step=3)
    assert (of(run).state, of(run).step) == (state, 3)


def test_a_run_at_work_is_told_with_its_process(run: Path) -> None:
    with files.locked(run):
        assert (of(run).state, of(run).process) == ("running", os.getpid())
    assert of(run).state == "done"


def test_a_run_without_a_checkpoint_and_a_damaged_one_are_told(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    assert (of(run).state, of(run).step) == ("not begun", 4)
    (run / "run.json").write_text("{")
    assert of(run).state == "damaged"
    (run / "metrics.jsonl").unlink()
    assert (of(run).step, of(run).loss) == (None, None)


def test_of_a_long_log_the_end_is_read(run: Path) -> None:
    """The best evaluation may stand before it, and is in the checkpoint."""
    log, best = run / "metrics.jsonl", of(run).best_val_loss
    log.write_text('{"step": 1, "loss": 9.0, "val_loss": 0.0}\n' * BYTES_LOOKED_AT + '{"step": 4, "loss": 2.5}\n')
    assert (of(run).loss, of(run).best_val_loss) == (2.5, 0.0)  # as half of the lines looked at say
    log.write_text("x" * BYTES_LOOKED_AT + '\n{"step": 4, "loss": 2.5}\n')
    assert (of(run).loss, of(run).best_val_loss) == (2.5, best)


def test_the_runs_of_a_folder_are_listed_the_newest_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = shutil.copytree(run, run.with_name("two"))
    told_otherwise(older, ended="interrupted")
    for each in older.rglob("*"):
        os.utime(each, (0, 1000))
    (run.parent / "notes").mkdir()
    assert [each.run for each in standings(run.parent)] == [str(run), str(older)]
    capsys.readouterr()
    assert main(["runs", str(run.parent), "--json"]) == 0
    assert [each["state"] for each in json.loads(capsys.readouterr().out)] == ["done", "interrupted"]
    assert main(["runs", str(run.parent)]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0].split("  ")[0] == "run"
    assert told.rstrip().endswith(f"hornbook resume {older}")
    with pytest.raises(UserError, match="no such folder of runs"):
        standings(run.parent / "nowhere")

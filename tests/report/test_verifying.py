from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hornbook.base.console import Progress
from hornbook.base.errors import UserError
from hornbook.report.verify import verify
from hornbook.runs.folder import resolve
from hornbook.shards.prepare import ShardsConfig, prepare
from hornbook.text.corpora import find_source
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train.config import RunConfig
from hornbook.train.start import fit


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def shards(text_file: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    prepare(find_source(str(text_file)), TokenizerConfig(kind="byte"), ShardsConfig(), folder)
    return folder


@pytest.fixture
def run(tiny: Callable[..., RunConfig], shards: Path, tmp_path: Path) -> Path:
    knobs = {"steps": 4, "save_every_steps": 2, "keep_checkpoints": 5}
    fit(tiny(data=str(shards), train=knobs), tmp_path / "run", Progress())
    return tmp_path / "run"


def test_a_whole_run_is_good(run: Path, shards: Path) -> None:
    found = verify(run)
    assert {folder.name for folder in found} >= {"step-00000002", "step-00000004", "shards"}
    assert set(found.values()) == {None}
    newest = run / "checkpoints" / "step-00000004"
    assert verify(newest) == {newest: None}
    assert verify(shards) == {shards: None}


@pytest.mark.parametrize("kind", ["checkpoints", "snapshots"])
def test_another_step_under_a_steps_name_is_told_and_does_not_speak(kind: str, run: Path) -> None:
    """Each of its files is as it was written."""
    four = run / kind / "step-00000004"
    shutil.rmtree(four)
    shutil.copytree(run / kind / "step-00000002", four)
    assert {folder: wrong for folder, wrong in verify(run).items() if wrong} == {four: "holds step 2"}
    shutil.rmtree(run / ("snapshots" if kind == "checkpoints" else "checkpoints"))
    assert resolve(run, "newest").name == "step-00000002"
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        resolve(run, "4")


@pytest.mark.parametrize(("kind", "told"), [("checkpoints", "has no state.json"), ("best", "is a snapshot")])
def test_a_snapshot_in_the_place_of_another_kind_is_told(kind: str, told: str, run: Path) -> None:
    four = run / kind / "step-00000004"
    shutil.rmtree(four, ignore_errors=True)
    shutil.copytree(run / "snapshots" / "step-00000004", four)
    ((folder, wrong),) = [(folder, wrong) for folder, wrong in verify(run).items() if wrong]
    assert folder == four
    assert wrong.startswith(told)


def test_a_checkpoint_in_the_place_of_a_snapshot_is_told(run: Path) -> None:
    four = run / "snapshots" / "step-00000004"
    shutil.rmtree(four)
    shutil.copytree(run / "checkpoints" / "step-00000004", four)
    assert {folder: wrong for folder, wrong in verify(run).items() if wrong} == {four: "is no snapshot"}


def test_another_runs_snapshot_is_told(run: Path, tiny: Callable[..., RunConfig], shards: Path, tmp_path: Path) -> None:
    fit(tiny(data=str(shards), seed=2, train={"steps": 2}), tmp_path / "other", Progress())
    two = run / "snapshots" / "step-00000002"
    shutil.rmtree(two)
    shutil.copytree(tmp_path / "other" / "snapshots" / "step-00000002", two)
    assert {folder: wrong for folder, wrong in verify(run).items() if wrong} == {two: "belongs to another run"}


def test_one_flipped_bit_is_found_and_named(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-00000002"
    flip_a_bit(checkpoint / "model.safetensors")
    found = verify(run)
    assert found.pop(checkpoint) == "model.safetensors has changed since it was written"
    assert set(found.values()) == {None}


@pytest.mark.parametrize("name", ["train-00000.bin", "val-00000.bin"])
def test_a_flipped_bit_in_the_data_is_found(name: str, shards: Path) -> None:
    flip_a_bit(shards / name)
    assert verify(shards) == {shards: f"{name} has changed since it was written"}


def test_data_that_is_gone_is_told_of_the_run(run: Path, shards: Path) -> None:
    (shards / "train-00000.bin").unlink()
    (what,) = filter(None, verify(run).values())
    assert "is missing" in what


def test_a_swapped_tokenizer_is_found(shards: Path) -> None:
    path = shards / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(tokenizer))
    (what,) = filter(None, verify(shards).values())
    assert "tokenizer.json: has changed" in what


def test_what_was_never_sealed_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing says how it should be"):
        verify(tmp_path)

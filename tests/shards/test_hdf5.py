from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from hornbook import cli
from hornbook.shards import hdf5
from hornbook.shards.format import Shards
from hornbook.shards.prepare import ShardsConfig, prepare
from hornbook.text.readers import source_from_path
from hornbook.text.tokenizer import TokenizerConfig


def test_every_split_is_an_array_that_h5py_and_our_own_reader_read(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hdf5, "IDS_AT_ONCE", 1000)  # so that there are many blocks, and a last one that is not full
    out, knobs = tmp_path / "shards", ["--tokenizer.kind", "byte", "--shards.test-fraction", "0.1"]
    words = ["prepare", str(text_file), "--out", str(out), *knobs, "--json", "--to", "hdf5", str(tmp_path / "t.h5")]
    assert cli.main(words) == 0
    written = [Path(each) for each in json.loads(capsys.readouterr().out)["hdf5"]]
    assert [path.name for path in written] == ["t_train.h5", "t_val.h5", "t_test.h5"]
    shards = Shards.open(out)
    for path, split in zip(written, ("train", "val", "test"), strict=True):
        ids = shards.split(split).read(0, len(shards.split(split)))
        with h5py.File(path) as file:
            assert (list(file), file["tokens"].dtype) == (["tokens"], np.int32)
            assert np.array_equal(file["tokens"][:], ids)
        (document,) = source_from_path(path).documents()
        assert document.ids is not None
        assert np.array_equal(document.ids, ids)


def test_shards_of_the_written_ids_hold_them_unchanged(text_file: Path, tmp_path: Path) -> None:
    byte = TokenizerConfig(kind="byte")
    first = prepare(source_from_path(text_file), byte, ShardsConfig(), tmp_path / "first")
    train, _ = hdf5.write_hdf5(first, hdf5.places_for(tmp_path / "ids.hdf5"))
    again = prepare(source_from_path(train), byte, ShardsConfig(), tmp_path / "again")
    ids = [shards.split(name) for shards, names in ((first, ["train"]), (again, ["train", "val"])) for name in names]
    whole, head, tail = (each.read(0, len(each)) for each in ids)
    assert np.array_equal(np.concatenate([head, tail]), whole)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "hdf5", "t.h5"], "t_val.h5: is there already"),
        (["--to", "hdf5", "t.txt"], "ends in .h5"),
        (["--to", "hdf5"], "--to hdf5 tokens.h5"),
        (["--to", "parquet", "t.h5"], "--to parquet"),
    ],
)
def test_a_mistake_is_told_before_anything_is_prepared(
    words: list[str],
    says: str,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t_val.h5").write_bytes(b"mine")
    assert cli.main(["prepare", str(text_file), "--out", "shards", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"t_val.h5": b"mine"}

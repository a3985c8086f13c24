"""What is read reaches the shards: counts, ids from elsewhere, texts that come in pieces."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import hornbook
from hornbook import cli
from hornbook.base.errors import UserError
from hornbook.shards.format import Shards
from hornbook.shards.prepare import ShardsConfig, open_or_prepare
from hornbook.text import streams
from hornbook.text.documents import TextConfig
from hornbook.text.tokenizer import TokenizerConfig

BYTE = TokenizerConfig(kind="byte")


def prepared(path: Path, fraction: float = 0.1, **knobs: Any) -> Shards:
    return open_or_prepare(str(path), BYTE, ShardsConfig(val_fraction=fraction), text=TextConfig(**knobs))


def ids_of(shards: Shards, split: str) -> np.ndarray:
    tokens = shards.split(split)
    return tokens.read(0, len(tokens))


def test_the_command_tells_what_was_replaced_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "line %d"}' % number for number in range(50)]
    path.write_bytes(b"\n".join([*lines, b'{"text": "na\xefve \xff"}', b"{", b'{"no": 1}', *lines]))
    words = ["prepare", str(path), "--tokenizer.kind", "byte", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    assert "a.jsonl line 51: not UTF-8" in capsys.readouterr().err
    assert cli.main([*words, "--errors", "replace", "--text.bad-records=skip", "--max-documents", "80"]) == 0
    told = capsys.readouterr()
    assert "2 characters replaced, 2 records passed over" in told.out
    assert "2 records were passed over" in told.err
    assert "a.jsonl line 52: " in told.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    counted = {"replaced_characters": 2, "skipped_records": 2, "attachments": 0, "left_out_files": {}}
    assert manifest["reading"] == counted
    assert sum(facts["documents"] for facts in manifest["splits"].values()) == 80


@pytest.mark.parametrize(("size", "is_doubted"), [(9, True), (9_999, True), (10_000, False)])
def test_a_text_far_too_small_to_learn_from_is_doubted(
    size: int, is_doubted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("x" * size)
    assert cli.main(["prepare", str(tmp_path / "a.txt"), "--tokenizer.kind", "byte"]) == 0
    hornbook.prepare_text(tmp_path / "a.txt", tokenizer={"kind": "byte"}, out=tmp_path / "out")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 * is_doubted
    assert all(line.startswith(f"warning: a: only {size:,} bytes of text, far too little to learn") for line in told)


def test_how_a_text_is_read_decides_which_shards_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "a{number}", "title": "b{number}"}}\n' for number in range(100)))
    first, second = prepared(path), prepared(path, field="title")
    assert first.folder != second.folder
    assert prepared(path).folder == first.folder
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("whole", [20_000, 1_000_000])
def test_ids_from_elsewhere_are_trained_on_as_they_are(whole: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(97, 123, whole).astype(np.int32)
    ids[99::100] = 256  # end of text, after every 99 bytes
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tokens"] = ids
    shards = prepared(tmp_path / "a.h5")
    train, val = (ids_of(shards, split) for split in ("train", "val"))
    assert np.array_equal(np.concatenate([train, val]), ids)  # nothing added, nothing lost
    assert len(val) == pytest.approx(whole / 10, abs=2)
    assert shards.split_facts("val")["bytes_of_text"] == int((val != 256).sum())


def test_ids_that_the_vocabulary_does_not_have_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["tokens"] = np.full(10_000, 299, dtype=np.int32)
    with pytest.raises(UserError, match=r"a\.h5: holds id 299, and the vocabulary ends at 256"):
        prepared(path)
    assert cli.main(["prepare", str(path), "--tokenizer.kind", "bpe"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.h5: holds ids" in line
    assert "--tokenizer.kind" in line


def test_a_large_array_of_ids_is_trained_on_once_its_tokenizer_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pile_train.h5"
    with h5py.File(path, "w") as file:
        file["tokens"] = np.random.default_rng(1).integers(97, 123, 300_000).astype(np.int32)
    sizes = ["--model.n-layer", "1", "--model.n-head", "1", "--model.n-embd", "8", "--model.context", "16"]
    words = ["train", "--data", str(path), "--out", str(tmp_path / "run"), "--train.steps", "2", *sizes]
    assert cli.main(words) == 2  # sizes for so much text come with a vocabulary to be learned
    assert cli.main([*words, "--tokenizer.kind", "byte"]) == 0
    capsys.readouterr()
    assert cli.main(["eval", str(tmp_path / "run"), "--data", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == 300_000
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / np.log(2))  # a byte for each id, and no other


def test_a_pattern_and_standard_input_are_prepared_as_the_files_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"text number {number}, and more" for number in range(100)]
    for part in (0, 1):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[part * 50 : part * 50 + 50])
        (tmp_path / f"{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    both = b"".join((tmp_path / f"{part}.jsonl.gz").read_bytes() for part in (0, 1))
    made = {}
    for name, stdin in [("files", None), (str(tmp_path / "*.jsonl.gz"), None), ("-", both)]:
        paths = [str(tmp_path / f"{part}.jsonl.gz") for part in (0, 1)] if name == "files" else [name]
        more = ["--text.format", "jsonl"] if stdin else []
        words = ["prepare", *paths, "--tokenizer.kind", "byte", "--json", *more]
        if stdin:
            command = [sys.executable, "-m", "hornbook", *words]
            told = subprocess.run(command, input=stdin, capture_output=True, check=True, timeout=100).stdout.decode()
        else:
            assert cli.main(words) == 0
            told = capsys.readouterr().out
        made[name] = json.loads(told.splitlines()[-1])
    assert len({each["fingerprint"] for each in made.values()}) == 1
    assert len({each["folder"] for each in made.values()}) == 3


@pytest.mark.parametrize("documents", [3, 200])
def test_a_text_in_pieces_makes_the_same_shards_as_the_whole(
    documents: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(documents):
        lines = (f"line {line} of {number}\n" for line in range(1 + number % 7 * 40))
        (folder / f"{number:03}.txt").write_text("".join(lines))
    whole = prepared(folder, 0.2)
    monkeypatch.setattr(streams, "PIECE", 500)
    pieces = prepared(folder, 0.2, max_documents=1_000)  # another place for the same text
    assert pieces.folder != whole.folder
    ends = [(ids_of(each, "train") == 256).sum() + (ids_of(each, "val") == 256).sum() for each in (whole, pieces)]
    assert ends[0] == ends[1]
    if documents == 3:  # split at the tail, which pieces do not move; by their beginning they may move a document
        for split in ("train", "val"):
            assert np.array_equal(ids_of(whole, split), ids_of(pieces, split))
    held = [sorted(ids_of(each, split).tolist() for split in ("train", "val")) for each in (whole, pieces)]
    assert sum(map(len, held[0])) == sum(map(len, held[1]))

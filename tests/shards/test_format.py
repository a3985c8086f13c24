from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effort import examples
from hornbook.base.errors import LONGEST_LINE, UserError
from hornbook.shards import prepare as preparing
from hornbook.shards.format import Shards, TokenArray, is_shards

Prepare = Callable[..., Shards]


@pytest.fixture
def shards(many_texts: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> Shards:
    monkeypatch.setattr(preparing, "TOKENS_PER_SHARD", 1_000)
    return prepared(many_texts, val_fraction=0.2)


@examples(1_500)
@given(st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=9), min_size=1, max_size=6), st.data())
def test_reading_across_files_is_reading_their_concatenation(parts: list[list[int]], data: st.DataObject) -> None:
    tokens = TokenArray([np.array(part, dtype="<u2") for part in parts])
    whole = np.concatenate([np.array(part) for part in parts])
    assert len(tokens) == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole) - start))
    np.testing.assert_array_equal(tokens.read(start, length), whole[start : start + length])
    assert tokens.read(start, length).dtype == np.int64


def test_files_on_disk_are_read_as_one_array(shards: Shards) -> None:
    paths = sorted(shards.folder.glob("train-*.bin"))
    assert len(paths) >= 3
    whole = np.concatenate([np.fromfile(path, "<u2") for path in paths]).astype(np.int64)
    tokens = shards.split("train")
    np.testing.assert_array_equal(tokens.read(0, len(whole)), whole)
    starts = np.random.default_rng(1).integers(0, len(whole) - 300, 50)
    np.testing.assert_array_equal(tokens.windows(starts, 300), np.stack([whole[s : s + 300] for s in starts]))


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 7), (6, 1), (7, 0)])
def test_reading_outside_is_refused(start: int, length: int) -> None:
    with pytest.raises(IndexError):
        TokenArray([np.arange(4), np.arange(2)]).read(start, length)


def test_a_split_without_text_has_no_tokens() -> None:
    assert len(TokenArray([])) == 0
    assert TokenArray([]).read(0, 0).tolist() == []


def test_what_is_not_shards_is_refused(shards: Shards, tmp_path: Path) -> None:
    (shards.folder / "manifest.json").rename(shards.folder / "MANIFEST.json")
    for folder in (shards.folder, tmp_path / "none"):
        assert not is_shards(folder)
        with pytest.raises(UserError, match="hornbook prepare"):
            Shards.open(folder)


def one_line_from(open_it: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        open_it()
    assert len(caught.value.mistakes) == 1
    assert len(str(caught.value)) <= LONGEST_LINE
    return str(caught.value)


def edited(**changes: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))

    return edit


def rewrite_splits(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["tokens"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: os.truncate(folder / "train-00001.bin", 100),
        lambda folder: os.truncate(folder / "val-00000.bin", 0),
        lambda folder: (folder / "train-00001.bin").unlink(),
        lambda folder: (folder / "train-00001.bin").write_bytes(bytes(10_000)),
        lambda folder: (folder / "manifest.json").write_text(""),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_text('{"format_version": 1}'),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"),
        edited(format_version=99),
        edited(dtype="uint32"),
        edited(dtype="float99"),
        edited(splits=[]),
        edited(splits={}),
        edited(vocab_size=3),
        edited(fingerprint="other"),
        rewrite_splits,
    ],
)
def test_opening_finds_wrong_sizes_and_an_edited_manifest(harm: Callable[[Path], object], shards: Shards) -> None:
    harm(shards.folder)
    one_line_from(lambda: Shards.open(shards.folder))
    assert shards.damage()


def flip_a_byte(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / name).write_bytes(data)


def swap(folder: Path) -> None:
    names = ["train-00000.bin", "train-00001.bin"]
    contents = [(folder / name).read_bytes() for name in names]
    for name, content in zip(reversed(names), contents, strict=True):
        (folder / name).write_bytes(content)


def link(folder: Path) -> None:
    shutil.move(folder / "train-00000.bin", folder.parent / "moved.bin")
    (folder / "train-00000.bin").symlink_to(folder.parent / "moved.bin")


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: flip_a_byte(folder, "train-00000.bin"),
        lambda folder: flip_a_byte(folder, "val-00000.bin"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        swap,
        link,
    ],
)
def test_reading_every_byte_finds_any_other_damage(harm: Callable[[Path], object], shards: Shards) -> None:
    assert shards.tokenizer.vocab_size == 257
    assert shards.damage() is None
    harm(shards.folder)
    assert shards.damage()
    assert Shards(shards.folder, shards.manifest).damage()


def test_another_tokenizer_under_the_same_shards_is_found(shards: Shards, many_texts: Path, prepared: Prepare) -> None:
    other = prepared(many_texts, "char", out="other")
    shutil.copy(other.folder / "tokenizer.json", shards.folder / "tokenizer.json")
    assert "tokenizer.json" in str(Shards.open(shards.folder).damage())


def test_shards_that_were_moved_open_elsewhere(shards: Shards, tmp_path: Path) -> None:
    moved = Shards.open(shards.folder.rename(tmp_path / "elsewhere"))
    assert moved.damage() is None
    assert moved.fingerprint == shards.fingerprint

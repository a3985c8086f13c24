"""Documents that are held back and, but for small changes, trained on too."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hornbook import cli
from hornbook.shards import twins
from hornbook.shards.format import Shards
from hornbook.shards.twins import SplitIds, Twins, find_twins

END = 999


def split_of(folder: Path, name: str, documents: list[list[int]], dtype: str = "<u2") -> SplitIds:
    """In two files, four bytes of text for each id."""
    folder.mkdir(exist_ok=True)
    ids = [np.array([*document, END], dtype) for document in documents]
    middle = len(ids) // 2
    for number, part in enumerate((ids[:middle], ids[middle:])):
        np.concatenate([np.empty(0, dtype), *part]).tofile(folder / f"{name}-{number}.bin")
    tokens = sum(map(len, ids))
    return SplitIds(sorted(folder.glob(f"{name}-*.bin")), np.dtype(dtype), tokens, 4 * tokens)


def made_up(number: int, least: int, most: int) -> list[list[int]]:
    chance = random.Random(1)
    return [[chance.randrange(900) for _ in range(chance.randint(least, most))] for _ in range(number)]


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("lengths", [(12, 30), (100, 400), (1_000, 2_000)], ids=["short", "middling", "long"])
@pytest.mark.parametrize("sparse", [False, True])
def test_twins_are_found_and_others_are_not(
    sparse: bool, lengths: tuple[int, int], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twins, "MAPPED", 5_000)
    monkeypatch.setattr(twins, "AT_ONCE", 500)
    documents = made_up(200, *lengths)
    with_one_more = [[*each, 7] for each in documents[:30]]
    with_a_change = [[*each[: len(each) // 2], 901, *each[len(each) // 2 :]] for each in documents[30:50]]
    held_back = documents[:50] + made_up(300, *lengths)[200:250]
    training = split_of(tmp_path, "train", [*documents[50:], *with_one_more, *with_a_change], dtype)
    if sparse:
        monkeypatch.setattr(twins, "MOST_IN_TRAINING", training.tokens // 20)
    found = find_twins(split_of(tmp_path, "val", held_back, dtype), training, END)
    short = lengths[1] < 50
    twins_there = 30 if short else 50  # in the middle of a short one a change leaves little that is the same
    if sparse and lengths[0] < 1_000:  # an estimate, from those that have a window
        assert 5 < found.compared < 100
        assert found.share == pytest.approx(twins_there / 100, abs=0.2)
    else:
        assert found.compared == 100
        assert found.documents == twins_there


def test_what_ends_or_begins_a_document_is_no_part_of_it(tmp_path: Path) -> None:
    one, two = made_up(2, 800, 800)
    training = split_of(tmp_path, "train", [one[400:], two[:400]])
    assert find_twins(split_of(tmp_path, "val", [one[:400], two[400:]]), training, END) == Twins(0, 2)
    assert find_twins(split_of(tmp_path, "other", [one[400:], two[:400]]), training, END) == Twins(2, 2, passages=1.0)


def test_passages_are_told_where_no_document_has_a_twin(tmp_path: Path) -> None:
    """Of a text that is one document, the tail of which stands in part before."""
    one, two = made_up(2, 4_000, 4_000)
    found = find_twins(split_of(tmp_path, "val", [one[:2_000] + two[:2_000]]), split_of(tmp_path, "t", [one]), END)
    assert (found.documents, found.compared) == (0, 1)
    assert found.passages == pytest.approx(0.5, abs=0.05)


def test_runs_of_one_id_and_splits_without_any_are_no_twins(tmp_path: Path) -> None:
    blanks, empty = split_of(tmp_path, "train", [[5] * 1_000] * 4), SplitIds((), np.dtype("<u2"), 0, 0)
    assert find_twins(blanks, blanks, END) == Twins(0, 0)
    for held_back, training in ((empty, blanks), (blanks, empty)):
        assert find_twins(held_back, training, END) == Twins(0, 0)


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@pytest.mark.parametrize("more", [".", None], ids=["a full stop more", "no twins"])
def test_preparation_tells_of_twins(
    more: str | None, kind: str, tmp_path: Path, some_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(0, 400):
        text = some_text[number * 200 : number * 200 + 200]
        (folder / f"{number}.txt").write_text(text)
        if more:
            (folder / f"{number} again.txt").write_text(text + more)
    out = tmp_path / "out"
    words = ["prepare", str(folder), "--tokenizer.kind", kind, "--shards.val-fraction", "0.1", "--out", str(out)]
    assert cli.main(words) == 0
    told, facts = capsys.readouterr(), Shards.open(out).manifest["report"]
    found, compared = facts["twins"]["documents"], facts["twins"]["compared"]
    assert compared > 20
    line = f"of {compared} validation documents compared, {found} ({found / compared:.0%}) are in the training text"
    if more:
        assert found > 0.8 * compared
        assert f"warning: {line}" in told.err
        assert line in told.out
    else:
        assert found <= 0.05 * compared
        assert facts["duplicates"] == 0


def test_a_document_that_repeats_itself_is_told_of(
    tmp_path: Path, some_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "twice.txt").write_text(some_text * 2)
    words: list[Any] = ["prepare", str(tmp_path / "twice.txt"), "--tokenizer.kind", "byte", "--out", tmp_path / "out"]
    assert cli.main([str(word) for word in words]) == 0
    assert "of 1 validation documents compared, 1 (100%) are in the training text" in capsys.readouterr().err

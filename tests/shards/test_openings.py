"""Words with which a model is asked to begin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hornbook.shards.format import Shards
from hornbook.shards.openings import openings
from hornbook.shards.prepare import ShardsConfig, prepare
from hornbook.text.corpora import find_source
from hornbook.text.tokenizer import TokenizerConfig


def prepared(path: Path, kind: str = "byte", fraction: float | None = None) -> Shards:
    return prepare(
        find_source(str(path)), TokenizerConfig(kind=kind), ShardsConfig(val_fraction=fraction), path.parent / "shards"
    )


def test_those_of_one_text_are_words_of_its_held_back_end(text_file: Path, tmp_path: Path) -> None:
    text = text_file.read_text()
    (tmp_path / "one.txt").write_text(text)
    shards = prepared(tmp_path / "one.txt")
    held_back = text[-shards.split_facts("val")["bytes_of_text"] :]
    found = openings(shards, 3)
    assert len(set(found)) == 3
    for words in found:
        assert re.search(rf"\n\s*{re.escape(words)}\s", held_back)
        assert 0 < len(words) <= 40
    assert openings(shards, 1) == found[:1]


def test_those_of_many_documents_are_how_documents_begin(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number}.txt").write_text(f"Story {number} begins with some words, and goes on for a while.\n")
    shards = prepare(
        find_source(str(tmp_path)), TokenizerConfig(kind="byte"), ShardsConfig(), tmp_path.parent / "many-shards"
    )
    for words in openings(shards, 3):
        assert words.startswith("Story ")
        assert words.endswith(" begins with")


@pytest.mark.parametrize(
    ("text", "longest"),
    [("春はあけぼの。やうやう白くなりゆく山ぎは、すこしあかりて\n" * 200, 8), ("x" * 5000, 8), ("\n" * 5000, 0)],
    ids=["no blanks", "one word", "no words"],
)
def test_any_text_has_some(text: str, longest: int, tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_text(text)
    [words] = openings(prepared(tmp_path / "odd.txt"), 1)
    assert len(words) <= longest
    assert words in text

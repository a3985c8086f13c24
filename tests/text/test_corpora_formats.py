"""The entries of the table, read in the formats that their files have, from files made here."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from hornbook.shards.prepare import ShardsConfig, open_or_prepare
from hornbook.text.corpora import CORPORA, find_source
from hornbook.text.corpus import Choice, Remote
from hornbook.text.tokenizer import TokenizerConfig

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def write_articles(path: Path, split: str) -> None:
    rows = [
        "",
        f" = {split} one = \n",
        "",
        " It is . \n",
        "",
        " = = Life = = \n",
        f" = {split} two = \n",
        " It is . \n",
    ]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path)


def write_lines(path: Path, split: str) -> None:
    lines = (json.dumps({"text": f"{split} {each}", "meta": {"pile_set_name": "X"}}) + "\n" for each in range(3))
    path.write_bytes(zstd.compress("".join(lines).encode()))


def write_stories(path: Path, split: str) -> None:
    path.write_text("".join(f"Once {split} {each}.\n<|endoftext|>\n" for each in range(4)))


def write_pages(path: Path, split: str) -> None:
    table = pyarrow.table({"text": ["a page", "another"], "url": ["http://a", "http://b"], "score": [3.5, 2.5]})
    pyarrow.parquet.write_table(table, path)


@pytest.fixture
def at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Path, str], None]], None]:
    """Puts files in the places of a corpus's own, and forgets what these are known by."""
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path))

    def lay(name: str, write: Callable[[Path, str], None]) -> None:
        corpus = CORPORA[name]

        def remote(choice: Choice) -> list[Remote]:
            found = []
            for each in corpus.remote(choice):
                path = corpus.folder() / each.name
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, each.split)
                found.append(replace(each, bytes=path.stat().st_size, sha256=None))
            return found

        monkeypatch.setitem(CORPORA, name, replace(corpus, remote=remote))

    return lay


@pytest.mark.parametrize(
    ("spec", "write", "documents", "first"),
    [
        (
            "wikitext-2",
            write_articles,
            {"train": 2, "val": 2, "test": 2},
            " = train one = \n It is . \n = = Life = = \n",
        ),
        ("wikitext-103:raw=no", write_articles, {"train": 4, "val": 2, "test": 2}, " = train one = \n It is . \n"),
        ("wikitext-2:clean=yes", write_articles, {"train": 4, "val": 4, "test": 4}, " = train one = "),
        ("wikitext-2:split=test", write_articles, {"": 2}, " = test one = \n It is . \n"),
        ("pile:files=0-2", write_lines, {"train": 9, "val": 3}, "train 0"),
        ("tinystories", write_stories, {"train": 4, "val": 4}, "Once train 0."),
        ("openwebtext:files=3-4", write_pages, {"": 4}, "a page"),
        ("fineweb-edu:files=13", write_pages, {"": 2}, "a page"),
    ],
)
def test_an_entry_gives_the_documents_that_its_files_hold(
    spec: str,
    write: Callable[[Path, str], None],
    documents: dict[str, int],
    first: str,
    at_hand: Callable[[str, Callable[[Path, str], None]], None],
) -> None:
    at_hand(spec.partition(":")[0], write)
    found = list(find_source(spec).documents())
    assert Counter(document.split for document in found) == documents
    assert found[0].text.startswith(first)
    assert all(document.ends for document in found)


def test_a_test_split_is_written_beside_the_others(
    at_hand: Callable[[str, Callable[[Path, str], None]], None],
) -> None:
    at_hand("wikitext-2", write_articles)
    shards = open_or_prepare("wikitext-2", TokenizerConfig(kind="byte"), ShardsConfig())
    for split in ("train", "val", "test"):
        tokens = shards.split(split)
        text = "".join(chr(each) for each in tokens.read(0, len(tokens)).tolist() if each < 256)
        assert text.count(f"= {split} ") == 2
        assert shards.split_facts(split)["documents"] == 2

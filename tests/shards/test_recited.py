"""What stands in the training text, against a search that looks everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.shards import recited as module
from hornbook.shards.format import TokenArray
from hornbook.shards.recited import LEAST, WORDS, folded, recited
from hornbook.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

ALPHABET = "ab \n"


class Shards:
    """Of documents, in files of so many ids."""

    def __init__(self, tokenizer: Tokenizer, documents: list[str], file_ids: int) -> None:
        self.tokenizer = tokenizer
        ids = [each for text in documents for each in [*tokenizer.encode(text), tokenizer.end_of_text]]
        self.ids = np.array(ids, np.uint16)
        self.parts = [self.ids[at : at + file_ids] for at in range(0, len(ids), file_ids)]

    def split(self, name: str) -> TokenArray:
        assert name == "train"
        return TokenArray(list(self.parts))


def naive(documents: list[str], text: str) -> tuple[int, int, int, int]:
    """Sequences, those found, bytes covered, and the longest passage."""
    there = " " + " ".join(" ".join(documents).split()) + " "
    words = text.split()
    sequences = [" " + " ".join(words[at : at + WORDS]) + " " for at in range(len(words) - WORDS + 1)]
    here, held = bytes(folded(text)), there.encode()
    covered, longest = set(), 0
    for start in range(len(here)):
        length = 0
        while start + length < len(here) and here[start : start + length + 1] in held:
            length += 1
        if length >= LEAST:
            covered |= set(range(start, start + length))
            longest = max(longest, length)
    return len(sequences), sum(each in there for each in sequences), len(covered), longest


@pytest.fixture(scope="module")
def tokenizers(some_text: str) -> dict[str, Tokenizer]:
    kinds: dict[str, Any] = {"byte": {}, "bpe": {"vocab_size": 400}}
    return {
        kind: train_tokenizer(TokenizerConfig(kind=kind, **more), [some_text], 100_000) for kind, more in kinds.items()
    }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(ALPHABET, max_size=160), min_size=1, max_size=6),
    st.data(),
    st.sampled_from(["byte", "bpe"]),
    st.integers(1, 90),
)
def test_it_finds_what_a_search_everywhere_finds(
    tokenizers: dict[str, Tokenizer], documents: list[str], data: Any, kind: str, at_once: int
) -> None:
    """Parts of few ids, files of few: passages run over their ends, and over those of documents."""
    whole = " ".join(documents)
    begin = data.draw(st.integers(0, len(whole)))
    planted = whole[begin : begin + data.draw(st.integers(0, 200))].replace(" ", data.draw(st.sampled_from(" \n")))
    text = data.draw(st.text(ALPHABET, max_size=40)) + planted + data.draw(st.text(ALPHABET, max_size=40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", at_once)
        patch.setattr(module, "PAIRS", data.draw(st.integers(1, 50)))
        shards = Shards(tokenizers[kind], documents, data.draw(st.integers(1, 60)))
        [found, again] = recited(shards, [text, text])  # type: ignore[arg-type]
    assert (found.sequences, found.found, found.covered) == naive(documents, text)[:3]
    assert max((each.bytes for each in found.passages), default=0) == naive(documents, text)[3]
    assert (again.found, again.covered) == (found.found, found.covered)


def test_a_planted_passage_is_told_with_its_document(tokenizers: dict[str, Tokenizer], some_text: str) -> None:
    shards: Any = Shards(tokenizers["bpe"], some_text.split("\ndef "), 1000)
    documents = some_text.split("\ndef ")
    for number in (0, 3, len(documents) - 2):
        passage = documents[number][5:205]
        [found] = recited(shards, [f"Something else altogether. {passage} And on."])
        [longest, *_] = found.passages
        assert bytes(folded(passage)).decode() in longest.text
        assert longest.document == number + 1
        token = shards.ids[longest.token :][:40].tolist()
        assert bytes(folded(longest.text[10:40])) in bytes(folded(shards.tokenizer.decode(token)))


def test_other_text_has_nothing_there(tokenizers: dict[str, Tokenizer], some_text: str, test_data: Path) -> None:
    shards: Any = Shards(tokenizers["bpe"], [some_text], 1000)
    [found] = recited(shards, [(test_data / "the-verdict.txt").read_text()])
    assert found.sequences > 3000
    assert found.found / found.sequences < 0.01
    assert found.passages == ()

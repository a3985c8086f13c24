from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effort import examples
from hornbook.base.errors import UserError
from hornbook.shards import splits
from hornbook.shards.splits import Piece, SplitRule, measure
from hornbook.text.documents import TextConfig
from hornbook.text.readers import Part, Source, source_from_path
from hornbook.text.records import Document
from hornbook.text.streams import Tally


@dataclass(frozen=True)
class Given(Part):
    """Documents that a test makes up."""

    given: tuple[Document, ...] = ()

    def documents(self, tally: Tally | None = None) -> Iterator[Document]:
        yield from self.given

    def likely_bytes_of_text(self) -> float:
        return sum(len(document.text.encode(errors="replace")) for document in self.given)


def source_of(*parts: list[Document]) -> Source:
    """The documents of a part are of one split."""
    given = (Given("made up", Path(), (), split=part[0].split, given=tuple(part)) for part in parts)
    return Source("made up", tuple(given))


def plain(texts: list[str], split: str = "") -> list[Document]:
    return [Document(str(number), text, split=split) for number, text in enumerate(texts)]


def split(source: Source, val: float | None = None, test: float = 0.0) -> tuple[dict[str, list[str]], SplitRule]:
    rule = SplitRule(source, val, test)
    found: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for pieces in rule.split():
        for piece in pieces:
            found[piece.split].append(piece.data.decode())
    return found, rule


def test_asking_for_a_test_split_leaves_the_validation_split_as_it_is() -> None:
    source = source_of(plain([f"document {number}" for number in range(1_000)]))
    without, _ = split(source, 0.1)
    found, rule = split(source, 0.1, 0.2)
    assert found["val"] == without["val"]
    assert sorted(found["train"] + found["test"]) == sorted(without["train"])
    assert 150 < len(found["test"]) < 250
    assert not without["test"]
    assert "testing" in rule.description


@examples(2_000)
@given(
    texts=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=20),
    val=st.floats(0.05, 0.45),
    test=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_of_few_documents_the_tails_are_held_back_and_nothing_is_lost(
    texts: list[str], val: float, test: float
) -> None:
    texts = [f"{number}{text}" for number, text in enumerate(texts)]  # none twice
    found, rule = split(source_of(plain(texts)), val, test)
    whole = "".join(texts)
    assert "".join(found["train"] + found["val"] + found["test"]) == whole
    assert len("".join(found["train"])) == int(len(whole) * (1 - (val + test)))
    assert len("".join(found["test"])) == (len(whole) - int(len(whole) * (1 - test)) if test else 0)
    assert rule.duplicates == 0


@examples(2_000)
@given(st.lists(st.tuples(st.text(max_size=30), st.booleans()), min_size=1, max_size=12), st.floats(0.05, 0.9))
def test_pieces_of_a_document_begin_and_end_once_in_each_split(parts: list[tuple[str, bool]], val: float) -> None:
    parts = [(f"{number}{text}" if text else "", ends) for number, (text, ends) in enumerate(parts)]
    documents = [
        Document("a", text, ends=ends) for text, ends in [*parts, ("end", True)]
    ]  # in the parts below, none twice
    pieces = [piece for found in SplitRule(source_of(documents), val).split() for piece in found]
    for name in ("train", "val"):
        inside = False
        for piece in (piece for piece in pieces if piece.split == name):
            assert piece.begins is not inside
            inside = not piece.ends
        assert not inside
    assert b"".join(piece.data for piece in pieces).decode() == "".join(text for text, _ in parts) + "end"


def test_a_corpus_keeps_its_own_splits_and_trains_on_nothing_of_what_it_holds_back() -> None:
    train = plain(["a", "b", "shared with val", "c", "shared with test", "a"], "train")
    val = plain(["shared with val", "d", "in both"], "val")
    test = plain(["shared with test", "in both", "e"], "test")
    found, rule = split(source_of(train, val, test))
    assert found == {
        "train": ["a", "b", "c", "a"],
        "val": ["shared with val", "d"],
        "test": ["shared with test", "in both", "e"],
    }
    assert rule.duplicates == 3
    assert rule.description == "the corpus's own"


def test_so_does_a_corpus_among_other_texts() -> None:
    found, rule = split(source_of(plain(["a", "both"], "train"), plain(["both", "b"], "val"), plain(["c" * 90])), 0.1)
    assert found == {"train": ["a", "c" * 81], "val": ["both", "b", "c" * 9], "test": []}
    assert rule.duplicates == 1


def test_a_text_that_is_one_large_document_gives_its_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "LOOK_AT_BYTES", 50)
    pieces = [Document("large", letter * 60, ends=letter == "c") for letter in "abc"]
    found, rule = split(source_of(pieces), 0.1)
    assert "".join(found["val"]) == "c" * 18
    assert "".join(found["train"] + found["val"]) == "a" * 60 + "b" * 60 + "c" * 60
    assert "tail" in rule.description


A, B, C = "a" * 50, "b" * 50, "c" * 50


@pytest.mark.parametrize(
    ("texts", "train", "val", "dropped"),
    [
        (["twin", A, B, "twin", "twin"], [A, "b" * 43], ["b" * 7, "twin"], 2),  # the last one counts, wherever
        ([A, A], ["a" * 45], ["a" * 5], 1),  # the border cuts it
        ([A, B, C, A], [B, C, "a" * 35], ["a" * 15], 1),
        ([A, C, B, C, A], [C, B, C, "a" * 35], ["a" * 15], 1),
        ([B, A, C, "x" * 10, C], [B, A, "x" * 10, "c" * 34], ["c" * 16], 1),
        ([A] * 10, ["a" * 45], ["a" * 5], 9),
        ([A] * 100, ["a" * 45], ["a" * 5], 99),  # many documents, of one text
        ([A, A, B, C], [A, A, B, "c" * 35], ["c" * 15], 0),  # what is not held back may be there twice
    ],
)
def test_of_few_documents_none_is_both_trained_on_and_held_back(
    texts: list[str], train: list[str], val: list[str], dropped: int
) -> None:
    found, rule = split(source_of(plain(texts)), 0.1)
    assert (found["train"], found["val"], rule.duplicates) == (train, val, dropped)


def test_a_document_in_pieces_is_dropped_as_a_whole() -> None:
    def large(letter: str) -> list[Document]:
        return [Document(letter, letter * 60, ends=False), Document(letter, letter * 20)]

    documents = [*large("a"), *large("b"), *large("a")]
    found, rule = split(source_of(documents), 0.1)
    assert ("".join(found["train"]), "".join(found["val"]), rule.duplicates) == ("b" * 80 + "a" * 64, "a" * 16, 1)
    train, val = ([replace(each, split=split) for each in large("a") + large(more)] for split, more in SPLITS_AND_MORE)
    found, rule = split(source_of(train, val))
    assert ("".join(found["train"]), "".join(found["val"]), rule.duplicates) == ("b" * 80, "a" * 80 + "c" * 80, 1)


SPLITS_AND_MORE = (("train", "b"), ("val", "c"))


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_what_a_corpus_trains_on_is_not_held_back_of_other_documents(first: bool) -> None:
    texts = [f"document {number}" for number in range(300)]
    parts = [plain(texts), plain(texts[:150], "train")]
    found, rule = split(source_of(*parts[:: -1 if first else 1]), 0.2)
    assert 20 < rule.duplicates < 45
    assert set(found["train"]).isdisjoint(found["val"])
    assert set(found["train"] + found["val"]) == set(texts)


def test_by_hash_the_same_text_is_in_one_split_and_none_is_dropped() -> None:
    texts = [f"document {number % 300}" for number in range(900)]
    found, rule = split(source_of(plain(texts)), 0.3)
    assert sorted(found["train"] + found["val"]) == sorted(texts)
    assert set(found["train"]).isdisjoint(found["val"])
    assert rule.duplicates == 0


def test_a_large_text_is_measured_without_reading_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "LOOK_AT_BYTES", 5_000)
    texts = [f"document {number:05}" for number in range(10_000)]
    source = source_of(plain(texts))
    found = measure(source, 0.05)
    assert (found.whole, found.text_bytes) == (False, 14 * 10_000)
    assert found.documents < 400
    assert measure(source, 0.000_5).whole  # by hash too few would be held back
    assert measure(source.read_with(TextConfig(max_documents=1_000)), 0.05).text_bytes == 14 * 1_000


def test_many_files_are_many_documents_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(140):
        (tmp_path / f"{number:04}.txt").write_text(f"document {number:05}" * (number < 120))
    monkeypatch.setattr(splits, "LOOK_AT_BYTES", 1_000)
    source = source_from_path(tmp_path)
    found = measure(source, 0.05)
    assert (found.whole, found.text_bytes) == (False, source.bytes_on_disk())
    assert found.documents < 100
    assert measure(source, 0.049).whole  # of 120 too few would be held back


class Walked(Source):
    """Tells how many documents were read of it, in all."""

    read = 0

    def documents(self, tally: Tally | None = None) -> Iterator[Document]:
        for document in super().documents(tally):
            type(self).read += 1
            yield document


@pytest.mark.parametrize(
    ("number", "walks"),
    [(100, [1, 1, 1]), (2_000, [1, 2, 3])],
    ids=["a small text is read once", "of a large one the first walk goes on"],
)
def test_what_was_read_to_choose_by_is_not_read_again(
    number: int, walks: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "LOOK_AT_BYTES", 5_000)
    monkeypatch.setattr(splits, "KEPT_BYTES", 200_000)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "document {each:05}"}}\n' for each in range(number)) + '{"te')
    source = source_from_path(path, TextConfig(bad_records="skip"))
    monkeypatch.setattr(Walked, "read", 0)
    rule = SplitRule(Walked(source.name, source.parts), 0.05)
    assert rule.measured.whole is (number == 100)
    first = None
    for walk in walks:
        pieces = [piece for found in rule.split() for piece in found]
        assert (Walked.read, rule.tally.skipped) == (walk * number, 1)
        assert first in (None, pieces)
        first = pieces
    assert b"".join(sorted(piece.data for piece in pieces)).count(b"document") == number


def test_what_is_held_back_leaves_something_to_train_on() -> None:
    with pytest.raises(UserError, match="test-fraction"):
        SplitRule(source_of(plain(["some text"])), 0.5, 0.5)


def test_half_of_a_surrogate_pair_is_told_with_its_document() -> None:
    with pytest.raises(UserError, match="0: holds half"):
        split(source_of(plain(["\ud800"])))


def test_a_piece_knows_its_document() -> None:
    rule = SplitRule(source_of(plain(["one", "two"])), None)
    assert next(rule.split())[0] == Piece("train", "0", b"one", True, True)

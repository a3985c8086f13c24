"""Which split a document belongs to.

In: documents as they are read.  Out: pieces of text, each with its split: train, val or test.
What a corpus brings as a split stays one. Other documents go by the hash of their text, so that they stay where they
are when others are added; with few documents, where hashing would be a lottery, the text's tail is held back. Text
that is held back is not trained on: a document of the same text in a split before is dropped, and counted.
A document that comes in pieces is known by its first one, which is a million characters or more.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, NamedTuple

from numpy.typing import NDArray

from hornbook.base.errors import UserError
from hornbook.text.documents import Document
from hornbook.text.readers import Source
from hornbook.text.streams import Tally

SPLITS = ("train", "val", "test")
FEW_DOCUMENTS = 64
FEW_HELD_BACK = 6
# So much text is read to choose by; of a larger one the amount is estimated from its files' sizes.
LOOK_AT_BYTES = 8_000_000
# Hashes that are remembered to find the same text again: about 200 MB of them.
MOST_HASHES = 2_000_000
BYTES_PER_ID = 4  # about, before the ids are decoded


class Piece(NamedTuple):
    """A document, or a part of one, in its split: as UTF-8, or as the ids of one that was encoded elsewhere."""

    split: str
    name: str
    data: bytes
    begins: bool
    ends: bool
    ids: NDArray[Any] | None = None


@dataclass
class Measured:
    """How much text there is; all of it, or what could be told from its beginning and the sizes of its files."""

    text_bytes: int = 0
    documents: int = 0
    """These, and their characters or ids, are of what brings no split of its own."""
    characters: int = 0
    ids: str = ""
    """What holds ids, where something does."""
    whole: bool = True
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    """Of documents, in their order: a hash of the text, and its characters."""
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    last: dict[int, int] = field(default_factory=dict)
    """The number of the last document of each hash and size."""

    @property
    def different(self) -> int:
        """Documents; where most are copies, twice those of which they are copies."""
        return min(self.documents, 2 * (self.documents - len(self.hashes) + len(self.last)))

    @property
    def share_different(self) -> float:
        return self.different / self.documents if self.documents else 1.0

    def add(self, digest: int, size: int) -> None:
        if len(self.hashes) < MOST_HASHES:
            self.last[digest << 64 | size] = len(self.hashes)
            self.hashes.append(digest)
            self.sizes.append(size)
        self.documents += 1


def measure(source: Source, val_fraction: float | None) -> Measured:
    """Read until it is clear how to split: a large text of many documents not to its end."""
    found = Measured()
    estimate = source.likely_bytes_of_text()
    most = _most_documents(source)
    read, began, digest = 0, 0, None
    for read, document in enumerate(source.documents(), start=1):
        data = _encoded(document)
        found.text_bytes += len(data) if document.ids is None else BYTES_PER_ID * document.size
        found.ids = found.ids or ("" if document.ids is None else document.name)
        if not document.split:
            digest = _hash(document, data) if digest is None and document.size else digest
            found.characters += document.size
            if document.ends:
                found.add(digest or 0, found.characters - began)
                began, digest = found.characters, None
        if found.text_bytes >= LOOK_AT_BYTES:
            likely = min(estimate, found.text_bytes // read * most) if most else estimate
            fraction = val_fraction or val_fraction_for(likely)
            documents = max(found.different, int(_sure_documents(source, fraction) * found.share_different))
            if _brings_splits(source) or not _are_few(documents, fraction):
                found.text_bytes, found.whole = max(likely, found.text_bytes), False
                break
    return found


def val_fraction_for(text_bytes: int) -> float:
    """A tenth of a text up to 5 MB, half a megabyte up to 1 GB, and then a two-thousandth."""
    return max(min(0.1, 500_000 / max(text_bytes, 1)), 0.0005)


class SplitRule:
    """Gives each document its split; counts the duplicates that it drops."""

    def __init__(self, source: Source, measured: Measured, val_fraction: float | None, test_fraction: float) -> None:
        val = val_fraction or val_fraction_for(measured.text_bytes)
        if val + test_fraction >= 1:
            raise UserError(
                f"--shards.test-fraction: {test_fraction:g} and {val:.4g} for validation leave nothing to train on"
            )
        self.duplicates = 0
        self._hash_below = {"val": int(val * 2**64), "test": int((val + test_fraction) * 2**64)}
        few = measured.whole and _are_few(measured.different, val)
        self._held = _held_back(source, None if few else self._by_hash)
        self._cuts: list[int] | None = None
        self._copies: dict[int, bool] = {}
        """Of documents of which the tail is held back, by their number: those of which another one counts, and
        whether they are dropped."""
        if few:
            shares_after = [val + test_fraction, test_fraction] if test_fraction else [val]
            self._cuts = self._hold_back_the_tail(measured, shares_after)
        rule = "tail of the text" if few else "hash of the document's text"
        shares = f"{val:.4g} for validation" + (f", {test_fraction:.4g} for testing" if test_fraction else "")
        self.description = f"{rule}, {shares}" if measured.characters else "the corpus's own"

    def split(self, source: Source, tally: Tally | None = None) -> Iterator[list[Piece]]:
        """For each thing that the source yields, the pieces that become of it: none, one, or several."""
        self.duplicates = 0
        number = characters = digest = 0
        begins, dropped, home = True, False, "train"
        copy: bool | None = None
        unended: set[str] = set()
        for document in source.documents(tally):
            data = _encoded(document)
            by_tail = self._cuts is not None and not document.split
            if begins:
                digest = _hash(document, data) if not by_tail and (self._held or not document.split) else 0
                home = document.split or self._by_hash(digest)
                copy = self._copies.get(number) if by_tail else None
                dropped = bool(copy) if by_tail else self._held.get(digest, 0) > SPLITS.index(home)
                self.duplicates += dropped
            if dropped:
                pieces = []
            elif by_tail and copy is None:
                pieces = self._cut(document, data, characters, unended)
                characters += document.size
            else:
                home = "train" if by_tail else home
                pieces = [Piece(home, document.name, data, home not in unended, document.ends, document.ids)]
            begins = document.ends
            number += by_tail and document.ends
            unended = {piece.split for piece in pieces if not piece.ends}
            yield pieces

    def _hold_back_the_tail(self, measured: Measured, shares_after: list[float]) -> list[int]:
        """Where the tails begin. Of documents of the same text the last one counts: the others are trained on where all
        of it is, and dropped where any of it is held back. What a corpus holds back by itself counts nowhere else."""
        last = [
            measured.last[digest << 64 | size] for digest, size in zip(measured.hashes, measured.sizes, strict=True)
        ]
        counts = [last[number] == number and digest not in self._held for number, digest in enumerate(measured.hashes)]
        ends = list(accumulate(size * counts[number] for number, size in enumerate(measured.sizes)))
        characters = measured.characters - sum(measured.sizes) + (ends[-1] if ends else 0)
        cuts = [int(characters * (1 - share)) for share in shares_after]
        for number, digest in enumerate(measured.hashes):
            at = sum(ends[last[number]] > cut for cut in cuts)
            if not counts[number]:
                self._copies[number] = at > 0 or digest in self._held
            elif at:
                self._held[digest] = max(at, self._held.get(digest, 0))
        return cuts

    def _by_hash(self, digest: int) -> str:
        return next((split for split, limit in self._hash_below.items() if digest < limit), "train")

    def _cut(self, document: Document, data: bytes, begin: int, unended: set[str]) -> list[Piece]:
        """The parts of a document before, between and after the places where the tails begin; a tail's beginning ends
        what was before."""
        pieces: list[Piece] = []
        rest: Document | None = document
        at = begin
        for split, until in zip(SPLITS, [*(self._cuts or []), None], strict=False):
            if rest is None:
                break
            part, rest = (rest, None) if until is None else rest.cut(until - at)
            if part is not None:
                text = data if part is document else _encoded(part)
                at += part.size
                pieces.append(Piece(split, part.name, text, split not in unended, part.ends or at == until, part.ids))
        return pieces


def _are_few(documents: int, fraction: float) -> bool:
    return documents < FEW_DOCUMENTS or documents * fraction < FEW_HELD_BACK


def _sure_documents(source: Source, fraction: float) -> int:
    """How many documents there are for sure that have no split yet, counted no further than it matters."""
    files = (path for part in _in_order(source) if not part.split for path in part.files_that_are_documents())
    return sum(1 for _ in islice(files, max(FEW_DOCUMENTS, math.ceil(FEW_HELD_BACK / fraction))))


def _in_order(source: Source) -> list[Source]:
    """The sources that a source is made of, and that nothing is made of."""
    return [each for part in source.parts for each in _in_order(part)] if source.parts else [source]


def _brings_splits(source: Source) -> bool:
    return all(part.split for part in _in_order(source))


def _most_documents(source: Source) -> int:
    """How many are read at most; 0 where nothing limits them."""
    limits = [part.config.max_documents for part in _in_order(source)]
    return sum(limit or 0 for limit in limits) if all(limits) else 0


def _held_back(source: Source, by_hash: Callable[[int], str] | None) -> dict[int, int]:
    """Hashes of what is held back without regard to the rest, with the place of its split in SPLITS: that of a corpus,
    and beside a corpus that trains on what it brings, that of other documents. A part of a source is of one split, so
    the first document tells."""
    held: dict[int, int] = {}
    parts = _in_order(source)
    by_hash = by_hash if any(part.split == "train" for part in parts) else None
    for part in parts:
        begins = True
        for document in part.documents():
            if document.split == "train" or not (document.split or by_hash) or len(held) >= MOST_HASHES:
                break
            if begins:
                digest = _hash(document)
                home = document.split or (by_hash(digest) if by_hash else "train")
                if home != "train":
                    held[digest] = max(SPLITS.index(home), held.get(digest, 0))
            begins = document.ends
    return held


def _encoded(document: Document) -> bytes:
    try:
        return document.text.encode() if document.utf8 is None else document.utf8
    except UnicodeEncodeError:
        raise UserError(f"{document.name}: holds half of a surrogate pair, which is no text; leave it out") from None


def _hash(document: Document, data: bytes | None = None) -> int:
    if document.ids is not None:
        data = document.ids.tobytes()
    return int.from_bytes(hashlib.sha256(_encoded(document) if data is None else data).digest()[:8], "big")

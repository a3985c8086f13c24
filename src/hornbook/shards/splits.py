"""Which split a document belongs to.

In: documents as they are read.  Out: pieces of text, each with its split: train, val or test.
What a corpus brings as a split stays one. Other documents go by the hash of their text, so that they stay where they
are when others are added; with few documents, where hashing would be a lottery, the text's tail is held back. Text
that is held back is not trained on: a document of the same text in a split before is dropped, and counted.
A document that comes in pieces is known by its first one, which is a million characters or more.

Before a text is split, as much of it is read as it takes to choose by (`measure`): all of it where it is small, or has
few documents. What was read is kept, a few megabytes, and the first walk that follows goes on from there; a small text
is never read again. Of what a larger corpus brings, that which is held back is read beforehand, too: what is written
first must not be of it.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from typing import Any, NamedTuple

from numpy.typing import NDArray

from hornbook.base.errors import UserError
from hornbook.text.readers import Part, Source
from hornbook.text.records import Document
from hornbook.text.streams import Tally

SPLITS = ("train", "val", "test")
DROPPED, CUT = "dropped", "cut"  # what becomes of a document that is in no split, and of one that may be in several
FEW_DOCUMENTS = 64
FEW_HELD_BACK = 6
# So much text is read to choose by; of a larger one the amount is estimated from its files' sizes.
LOOK_AT_BYTES = 8_000_000
# What was read is kept up to so much, beside its text what each document takes in memory.
KEPT_BYTES = 16_000_000
BYTES_OF_A_DOCUMENT = 500
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
    kept: list[Document] | None = field(default_factory=list)
    """What was read, in its order; None where that was too much."""
    rest: Iterable[Document] = ()
    """What was not read yet."""
    tally: Tally = field(default_factory=Tally)
    """Of what was kept, and of the rest."""
    starts: list[tuple[int, int]] = field(default_factory=list)
    """How many documents, and how many characters of them, come before each share that was begun."""
    _digest: int | None = None
    _size: int = 0
    """Of the document that has not ended yet."""

    @property
    def different(self) -> int:
        """Documents; where most are copies, twice those of which they are copies."""
        return min(self.documents, 2 * (self.documents - len(self.hashes) + len(self.last)))

    @property
    def share_different(self) -> float:
        return self.different / self.documents if self.documents else 1.0

    def add(self, document: Document) -> None:
        data = _utf8(document)
        self.text_bytes += len(data) if document.ids is None else BYTES_PER_ID * document.size
        self.ids = self.ids or ("" if document.ids is None else document.name)
        if document.split:
            return
        if self._digest is None and document.size:
            self._digest = _hash(document, data)
        self._size += document.size
        self.characters += document.size
        if document.ends:
            if len(self.hashes) < MOST_HASHES:
                self.last[(self._digest or 0) << 64 | self._size] = len(self.hashes)
                self.hashes.append(self._digest or 0)
                self.sizes.append(self._size)
            self.documents += 1
            self._digest, self._size = None, 0


def measure(source: Source, val_fraction: float | None, shares: Sequence[Part] | None = None) -> Measured:
    """Read until it is clear how to split: a large text of many documents not to its end. It is read
    as it is, or by the shares into which it was cut."""
    found = Measured()

    def by_shares(shares: Sequence[Part]) -> Iterator[Document]:
        for share in shares:
            found.starts.append((found.documents, found.characters))
            yield from share.documents(found.tally)

    found.rest = reading = by_shares(shares) if shares else source.documents(found.tally)
    estimate = source.likely_bytes_of_text()
    limits = [part.config.max_documents for part in source.parts]
    for read, document in enumerate(reading, start=1):
        found.add(document)
        if found.kept is not None:
            found.kept.append(document)
            if found.text_bytes + read * BYTES_OF_A_DOCUMENT > KEPT_BYTES:
                found.kept = None
        if found.text_bytes >= LOOK_AT_BYTES:
            most = found.text_bytes // read * sum(limit or 0 for limit in limits) if all(limits) else estimate
            likely = min(estimate, most)
            fraction = val_fraction or val_fraction_for(likely)
            documents = max(found.different, int(_sure_documents(source, fraction) * found.share_different))
            if all(part.split for part in source.parts) or not _are_few(documents, fraction):
                found.text_bytes, found.whole = max(likely, found.text_bytes), False
                break
    return found


def val_fraction_for(text_bytes: int) -> float:
    """A tenth of a text up to 5 MB, half a megabyte up to 1 GB, and then a two-thousandth."""
    return max(min(0.1, 500_000 / max(text_bytes, 1)), 0.0005)


@dataclass
class Homes:
    """Gives each document its split; counts the duplicates that it drops."""

    val_below: int
    test_below: int
    held: dict[int, int] = field(default_factory=dict)
    """Hashes of what is held back without regard to the rest, with the place of its split in SPLITS."""
    copies: dict[int, str] = field(default_factory=dict)
    """Of few documents, by their number: where those belong of which another one counts."""
    cuts: list[int] | None = None
    """Of few documents: where the tails begin."""
    duplicates: int = 0

    def anew(self) -> Homes:
        """For another walk, beside this one."""
        return Homes(self.val_below, self.test_below, self.held, self.copies, self.cuts)

    def split(self, documents: Iterable[Document], number: int = 0, characters: int = 0) -> Iterator[list[Piece]]:
        """For each of the documents, the pieces that become of it: none, one, or several. So many documents, and
        characters of those that count, come before them."""
        self.duplicates = 0
        begins, home = True, "train"
        unended: set[str] = set()
        for document in documents:
            data = _utf8(document)
            if begins:
                home = self._home(document, data, number)
                self.duplicates += home == DROPPED
            if home == DROPPED:
                pieces = []
            elif home == CUT:
                pieces = self._cut(document, data, characters, unended)
                characters += document.size
            else:
                pieces = [Piece(home, document.name, data, home not in unended, document.ends, document.ids)]
            begins = document.ends
            number += document.ends and not document.split
            unended = {piece.split for piece in pieces if not piece.ends}
            yield pieces

    def by_hash(self, digest: int) -> str:
        return "val" if digest < self.val_below else "test" if digest < self.test_below else "train"

    def _home(self, document: Document, data: bytes, number: int) -> str:
        """Of the document, or of all its pieces, of which this is the first."""
        if self.cuts is not None and not document.split:
            return self.copies.get(number, CUT)
        if document.split and not self.held:
            return document.split
        digest = _hash(document, data)
        home = document.split or self.by_hash(digest)
        return DROPPED if self.held.get(digest, 0) > SPLITS.index(home) else home

    def _cut(self, document: Document, data: bytes, begin: int, unended: set[str]) -> list[Piece]:
        """The parts of a document before, between and after the places where the tails begin; a tail's beginning ends
        what was before."""
        pieces: list[Piece] = []
        rest: Document | None = document
        at = begin
        for split, until in zip(SPLITS, [*(self.cuts or []), None], strict=False):
            if rest is None:
                break
            part, rest = (rest, None) if until is None else rest.cut(until - at)
            if part is not None:
                text = data if part is document else _utf8(part)
                at += part.size
                pieces.append(Piece(split, part.name, text, split not in unended, part.ends or at == until, part.ids))
        return pieces


class SplitRule:
    """How a source is split: what was measured of it, and where each of its documents belongs."""

    def __init__(
        self,
        source: Source,
        val_fraction: float | None,
        test_fraction: float = 0.0,
        shares: Sequence[Part] | None = None,
    ) -> None:
        self._source = source
        self.measured = measured = measure(source, val_fraction, shares)
        self.tally = measured.tally
        """Of the walk that was begun last: what of it was passed over or replaced."""
        val = val_fraction or val_fraction_for(measured.text_bytes)
        if val + test_fraction >= 1:
            raise UserError(
                f"--shards.test-fraction: {test_fraction:g} and {val:.4g} for validation leave nothing to train on"
            )
        self.homes = homes = Homes(int(val * 2**64), int((val + test_fraction) * 2**64))
        few = measured.whole and _are_few(measured.different, val)
        homes.held = self._held_back(None if few else homes.by_hash)
        self.starts = [(0, 0)] * len(shares or ())
        """What comes before each share, for `Homes.split` to begin there."""
        if few:
            self._hold_back_the_tail(val, test_fraction)
        rule = "tail of the text" if few else "hash of the document's text"
        told = f"{val:.4g} for validation" + (f", {test_fraction:.4g} for testing" if test_fraction else "")
        self.description = f"{rule}, {told}" if measured.characters else "the corpus's own"

    @property
    def duplicates(self) -> int:
        return self.homes.duplicates

    def split(self) -> Iterator[list[Piece]]:
        """For each thing that the source yields, the pieces that become of it: none, one, or several."""
        return self.homes.split(self._documents())

    def _documents(self) -> Iterable[Document]:
        """All of the source: on from where it was measured, or where that is not kept any more, from the beginning."""
        kept = self.measured.kept
        if kept is None:
            self.tally = Tally()
            return self._source.documents(self.tally)
        if self.measured.whole:
            return kept
        self.measured.kept = None
        return chain(kept, self.measured.rest)

    def _held_back(self, by_hash: Callable[[int], str] | None) -> dict[int, int]:
        """Hashes of what a corpus holds back, and beside a corpus that trains on what it brings, of what is held back
        of other documents."""
        held: dict[int, int] = {}
        parts = self._source.parts
        of_others = by_hash if any(part.split == "train" for part in parts) else None
        wanted = {*SPLITS[1:], *([""] if of_others else [])}
        read: Iterable[Document] | None = self.measured.kept if self.measured.whole else None
        if read is None:
            read = chain.from_iterable(part.documents() for part in parts if part.split in wanted)
        begins = True
        for document in (each for each in read if each.split in wanted):
            if len(held) >= MOST_HASHES:
                break
            if begins:
                digest = _hash(document, _utf8(document))
                place = SPLITS.index(document.split or (of_others(digest) if of_others else "train"))
                if place:
                    held[digest] = max(place, held.get(digest, 0))
            begins = document.ends
        return held

    def _hold_back_the_tail(self, val: float, test: float) -> None:
        """Where the tails begin. Of documents of the same text the last one counts: the others are trained on where all
        of it is, and dropped where any of it is held back. What a corpus holds back by itself counts nowhere else."""
        hashes, sizes, homes = self.measured.hashes, self.measured.sizes, self.homes
        last = [self.measured.last[digest << 64 | size] for digest, size in zip(hashes, sizes, strict=True)]
        counts = [last[number] == number and digest not in homes.held for number, digest in enumerate(hashes)]
        ends = list(accumulate(size * counts[number] for number, size in enumerate(sizes)))
        characters = self.measured.characters - sum(sizes) + (ends[-1] if ends else 0)
        cuts = [int(characters * (1 - share)) for share in ([val + test, test] if test else [val])]
        for number, digest in enumerate(hashes):
            at = sum(ends[last[number]] > cut for cut in cuts)
            if not counts[number]:
                homes.copies[number] = DROPPED if at > 0 or digest in homes.held else "train"
            elif at:
                homes.held[digest] = max(at, homes.held.get(digest, 0))
        homes.cuts = cuts
        # Those beyond what is remembered count all.
        whole = [0, *accumulate(sizes)]
        counted = [0, *ends]
        self.starts = [
            (number, counted[min(number, len(ends))] + characters - whole[min(number, len(ends))])
            for number, characters in self.measured.starts
        ]


def _are_few(documents: int, fraction: float) -> bool:
    return documents < FEW_DOCUMENTS or documents * fraction < FEW_HELD_BACK


def _sure_documents(source: Source, fraction: float) -> int:
    """How many documents there are for sure that have no split yet, counted no further than it matters."""
    files = (path for part in source.parts if not part.split for path in part.files_that_are_documents())
    return sum(1 for _ in islice(files, max(FEW_DOCUMENTS, math.ceil(FEW_HELD_BACK / fraction))))


def _utf8(document: Document) -> bytes:
    try:
        return document.text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{document.name}: holds half of a surrogate pair, which is no text; leave it out") from None


def _hash(document: Document, data: bytes) -> int:
    data = data if document.ids is None else document.ids.tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")

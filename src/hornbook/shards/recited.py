"""What of some texts stands in the training text, word for word.

In: shards, and texts.  Out: of each text its passages that stand there, where, and how many of its sequences of eight
words do. All is compared as bytes of decoded text, in which blanks and line ends, however many, count as one blank, and
so does the end of a document: so it makes no difference where documents end, how the vocabulary cuts, or how lines are
broken. A word is what stands between blanks.

The texts are small and the shards are not: the shards are read once, decoded part by part, and hashed at every place by
one running sum; what has the hash of something sought is compared byte by byte. Memory is that of a part and of the
texts, whatever the size of the shards. (Sorted hashes on disk would answer the next question sooner, for ten times the
shards' size, written first.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hornbook.shards.format import Shards

WORDS = 8
LEAST = 40  # bytes of a passage, as much as eight words have
AT_ONCE = 1 << 16  # ids that are decoded together, whose hashes stay in the cache
MAPPED = 1 << 25  # ids after which files are mapped anew, since mapped pages that were read count as memory
LISTED = 5  # passages of a text
PAIRS = 1 << 16  # places that are compared together
FILTER_BITS = 23  # few pass that are not there: of half a megabyte of texts one place in twenty
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse: sums can be moved to any place
BLANK = 32
IS_BLANK = np.isin(np.arange(256), list(b" \t\n\r\v\f"))

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Passage:
    """A stretch of a text that stands in the training text."""

    text: str
    bytes: int
    start: int
    """In the text, in bytes once blanks are folded."""
    place: int
    """Where it begins in the split, so counted as well."""
    document: int
    token: int
    """The same: in which document, from 1 on, and at which token."""

    def overlaps(self, other: Passage) -> bool:
        """In the split."""
        return self.place < other.place + other.bytes and other.place < self.place + self.bytes


@dataclass(frozen=True)
class Recited:
    """Of one text."""

    sequences: int
    """Of eight words, those that begin at each of its words."""
    found: int
    """Of these."""
    passages: tuple[Passage, ...]
    """The longest few; none of them lies in another."""
    bytes: int
    covered: int
    """Bytes that lie in a passage."""


def folded(text: str) -> Bytes:
    raw = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    return _fold(raw, True)[0]


def recited(
    shards: Shards, texts: Sequence[str], split: str = "train", progress: Callable[[int], object] = lambda _: None
) -> list[Recited]:
    """`progress` is told how many tokens of the split have been read."""
    sought = _Sought([folded(text) for text in texts])
    stream = _Stream(shards, split)
    for part in stream.parts(sought.longest, progress):
        sought.look_at(part)
    return sought.told(stream)


@dataclass(frozen=True)
class _Part:
    """Of the folded text, with the end of the part before."""

    bytes: Bytes
    start: int
    is_last: bool


class _Stream:
    """A split as folded text. It begins and ends with a blank."""

    def __init__(self, shards: Shards, split: str) -> None:
        self._open = partial(shards.split, split)
        self.tokens, self.tokenizer = self._open(), shards.tokenizer
        pieces = [self.tokenizer.piece(token) for token in range(self.tokenizer.vocab_size)]
        pieces[self.tokenizer.end_of_text] = b" "
        self._lengths = np.array([len(piece) for piece in pieces], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._blob = np.frombuffer(b"".join(pieces) or b" ", np.uint8)
        # Of each part of AT_ONCE tokens: where it begins in the folded text, whether a blank went before, and documents
        # that had ended.
        self._began: list[tuple[int, bool, int]] = []

    def parts(self, overlap: int, progress: Callable[[int], object]) -> Iterator[_Part]:
        held, start, after_blank, ended = np.array([BLANK], np.uint8), 0, True, 0
        size = len(self.tokens)
        for at in range(0, size, AT_ONCE):
            if at % MAPPED == 0:
                self.tokens = self._open()
            ids = self.tokens.read(at, min(AT_ONCE, size - at))
            self._began.append((start + len(held), after_blank, ended))
            new, after_blank = _fold(self._decoded(ids), after_blank)
            ended += int((ids == self.tokenizer.end_of_text).sum())
            is_last = at + AT_ONCE >= size
            whole = np.concatenate([held, new, np.array([BLANK] * (is_last and not after_blank), np.uint8)])
            yield _Part(whole, start, is_last)
            kept = min(overlap, len(whole))
            held, start = whole[len(whole) - kept :], start + len(whole) - kept
            progress(at + len(ids))

    def locate(self, place: int) -> tuple[int, int]:
        """Of a place in the folded text the document, and the token."""
        number = max(int(np.searchsorted([start for start, *_ in self._began], place, side="right")) - 1, 0)
        start, after_blank, ended = self._began[number]
        at = number * AT_ONCE
        ids = self.tokens.read(at, min(AT_ONCE, len(self.tokens) - at))
        kept = np.flatnonzero(_kept(self._decoded(ids), after_blank))
        raw = kept[min(max(place - start, 0), len(kept) - 1)] if len(kept) else 0
        token = int(np.searchsorted(np.cumsum(self._lengths[ids]), raw, side="right"))
        return ended + int((ids[:token] == self.tokenizer.end_of_text).sum()) + 1, at + token

    def _decoded(self, ids: Places) -> Bytes:
        lengths = self._lengths[ids]
        ends = np.cumsum(lengths)
        places = np.repeat(self._starts[ids] - (ends - lengths), lengths)
        places += np.arange(len(places))
        return self._blob[places]


def _kept(raw: Bytes, after_blank: bool) -> NDArray[np.bool_]:
    blank = IS_BLANK[raw]
    before = np.concatenate([[after_blank], blank[:-1]]) if len(raw) else blank
    return ~(blank & before)


def _fold(raw: Bytes, after_blank: bool) -> tuple[Bytes, bool]:
    """Runs of blanks become one; of one that goes on from before, nothing is left."""
    if not len(raw):
        return raw, after_blank
    blank = IS_BLANK[raw]
    text = np.where(blank, np.uint8(BLANK), raw)[_kept(raw, after_blank)]
    return text, bool(blank[-1])


class _Sums:
    """Hashes of all stretches of a text, from one running sum: of bytes times powers of BASE, taken back to place 0."""

    _powers = np.ones(1, np.uint64)
    _inverses = np.ones(1, np.uint64)

    def __init__(self, text: Bytes) -> None:
        powers, self.inverses = self._up_to(len(text) + 1)
        self.sums = np.zeros(len(text) + 1, np.uint64)
        np.cumsum((text.astype(np.uint64) + np.uint64(1)) * powers[: len(text)], out=self.sums[1:])

    def of(self, starts: Any, ends: Any) -> Hashes:
        hashed: Hashes = (self.sums[ends] - self.sums[starts]) * self.inverses[starts]
        return hashed

    def windows(self) -> Hashes:
        """Of all stretches of LEAST bytes."""
        last = max(len(self.sums) - LEAST, 0)
        hashed: Hashes = (self.sums[LEAST:] - self.sums[:last]) * self.inverses[:last]
        return hashed

    @classmethod
    def _up_to(cls, length: int) -> tuple[Hashes, Hashes]:
        if len(cls._powers) < length:
            inverse = pow(BASE, -1, 1 << 64)
            cls._powers, cls._inverses = (_powers_of(base, length) for base in (BASE, inverse))
        return cls._powers, cls._inverses


def _powers_of(base: int, length: int) -> Hashes:
    powers = np.full(length, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


class _Hashed:
    """Hashes that are looked for among many."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = np.unique(hashes)
        self._filter = np.zeros(1 << FILTER_BITS, bool)
        self._filter[self._head(self.hashes)] = True

    def among(self, many: Hashes) -> tuple[Places, Places]:
        """Places in `many`, and which of the hashes stand there."""
        places = np.flatnonzero(self._filter[self._head(many)])
        if not len(self.hashes):
            return places[:0], places[:0]
        which = np.minimum(np.searchsorted(self.hashes, many[places]), len(self.hashes) - 1)
        same = self.hashes[which] == many[places]
        return places[same], which[same]

    @staticmethod
    def _head(hashes: Hashes) -> Places:
        heads: Places = (hashes >> np.uint64(64 - FILTER_BITS)).view(np.int64)
        return heads


class _Sought:
    def __init__(self, texts: Sequence[Bytes]) -> None:
        self.texts = texts
        self.whole = np.concatenate([np.empty(0, np.uint8), *texts])
        self.begins = np.cumsum([0, *(len(text) for text in texts)])
        sums = _Sums(self.whole)
        self._find_windows(sums)
        self._find_sequences(sums)
        longest = int((self.ends - self.starts).max()) if len(self.starts) else 0
        self.longest = max(longest + 2, LEAST + 1)
        # The longest stretch from each place on, and where it stands.
        self.lengths, self.places = np.zeros((2, len(self.whole)), np.int64)
        self.open: tuple[Places, Places, Places] = (np.empty(0, np.int64),) * 3  # begins here, there, length
        self.looked_until = 0

    def _find_windows(self, sums: _Sums) -> None:
        ranges = [np.arange(a, max(b - LEAST + 1, a)) for a, b in zip(self.begins, self.begins[1:], strict=False)]
        at = np.concatenate([np.empty(0, np.int64), *ranges])
        hashes = sums.of(at, at + LEAST)
        self.windows = _Hashed(hashes)
        # The places of each hash, one hash after another.
        order = np.argsort(hashes, kind="stable")
        self.window_places = at[order]
        self.first_of = np.searchsorted(hashes[order], self.windows.hashes)
        self.count_of = np.diff(np.append(self.first_of, len(at)))

    def _find_sequences(self, sums: _Sums) -> None:
        starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for text, begin in zip(self.texts, self.begins, strict=False):
            blanks = np.flatnonzero(text == BLANK)
            first = np.append(0, blanks + 1)
            last = np.append(blanks, len(text))
            words = last > first  # a text may end with a blank
            first, last = first[words], last[words]
            starts.append(begin + first[: max(len(first) - WORDS + 1, 0)])
            ends.append(begin + last[WORDS - 1 :])
        self.starts, self.ends = np.concatenate(starts), np.concatenate(ends)
        hashes = sums.of(self.starts, self.ends)
        self.sequences = _Hashed(hashes)
        self.is_found = np.zeros(len(self.starts), bool)
        self.is_missing = np.ones(len(self.sequences.hashes), bool)
        self.by_hash = np.argsort(hashes, kind="stable")
        self.first_with = np.append(np.searchsorted(hashes[self.by_hash], self.sequences.hashes), len(hashes))

    def look_at(self, part: _Part) -> None:
        sums = _Sums(part.bytes)
        self._look_for_sequences(part, sums)
        self._look_for_windows(part, sums)

    def _look_for_sequences(self, part: _Part, sums: _Sums) -> None:
        blanks = np.flatnonzero(part.bytes == BLANK)
        starts, ends = blanks[:-WORDS] + 1, blanks[WORDS:]
        hashes = sums.of(starts, ends)
        places, which = self.sequences.among(hashes)
        for place, number in zip(places.tolist(), which.tolist(), strict=True):
            if self.is_missing[number]:
                there = part.bytes[starts[place] : ends[place]].tobytes()
                same = self.by_hash[self.first_with[number] : self.first_with[number + 1]]
                for each in same:
                    self.is_found[each] |= self.whole[self.starts[each] : self.ends[each]].tobytes() == there
                self.is_missing[number] = not self.is_found[same].all()

    def _look_for_windows(self, part: _Part, sums: _Sums) -> None:
        hashes = sums.windows()
        skipped = max(self.looked_until - part.start, 0)
        places, which = self.windows.among(hashes[skipped:])
        places += skipped
        for at in range(0, len(places), PAIRS):
            self._follow(part, places[at : at + PAIRS], which[at : at + PAIRS])
        self.looked_until = part.start + len(hashes)
        if part.is_last:
            self._close(*self.open)

    def _follow(self, part: _Part, places: Places, which: Places) -> None:
        """Stretches grow by a byte where the next windows are alike as well."""
        counts = self.count_of[which]
        there = np.repeat(places, counts)
        within = np.arange(len(there)) - np.repeat(np.cumsum(counts) - counts, counts)
        here = self.window_places[np.repeat(self.first_of[which], counts) + within]
        offsets = np.arange(LEAST)
        for first_pair in range(0, len(there), PAIRS):
            some = slice(first_pair, first_pair + PAIRS)
            same = part.bytes[there[some, None] + offsets] == self.whole[here[some, None] + offsets]
            there[some][~same.all(axis=1)] = -1
        here, there = here[there >= 0], there[there >= 0] + part.start
        begins, at, lengths = (
            np.concatenate(pair) for pair in zip(self.open, (here, there, here * 0 + 1), strict=True)
        )
        order = np.lexsort((at, at - begins))
        begins, at, lengths = begins[order], at[order], lengths[order]
        goes_on = (np.diff(at - begins) == 0) & (at[1:] == at[:-1] + lengths[:-1])
        first = np.flatnonzero(np.append(True, ~goes_on)[: len(at)])
        lengths = np.add.reduceat(lengths, first) if len(first) else lengths
        begins, at = begins[first], at[first]
        # Those that reach the last place looked at may go on.
        last = int(places[-1]) + part.start if len(places) else -1
        stays = at + lengths - 1 >= last
        self._close(begins[~stays], at[~stays], lengths[~stays])
        self.open = (begins[stays], at[stays], lengths[stays])

    def _close(self, begins: Places, at: Places, lengths: Places) -> None:
        lengths = lengths + LEAST - 1
        longer = np.flatnonzero(lengths > self.lengths[begins])
        longer = longer[np.argsort(lengths[longer], kind="stable")]  # of several, the last is kept
        self.lengths[begins[longer]], self.places[begins[longer]] = lengths[longer], at[longer]

    def told(self, stream: _Stream) -> list[Recited]:
        return [self._told(index, stream) for index in range(len(self.texts))]

    def _told(self, index: int, stream: _Stream) -> Recited:
        begin, end = int(self.begins[index]), int(self.begins[index + 1])
        lengths = self.lengths[begin:end]
        reaches = np.arange(len(lengths)) + lengths
        before = np.append(0, np.maximum.accumulate(reaches))[:-1]
        outermost = np.flatnonzero((lengths > 0) & (reaches > before))
        passages = []
        for start in outermost[np.argsort(-lengths[outermost], kind="stable")].tolist()[:LISTED]:
            text = self.whole[begin + start : begin + int(reaches[start])].tobytes()
            place = int(self.places[begin + start])
            passages.append(Passage(text.decode(errors="replace"), len(text), start, place, *stream.locate(place)))
        mine = (self.starts >= begin) & (self.starts < end)
        covered = np.zeros(len(lengths) + 1, np.int64)
        np.add.at(covered, outermost, 1)
        np.add.at(covered, reaches[outermost], -1)
        held = int((np.cumsum(covered) > 0).sum())
        return Recited(int(mine.sum()), int(self.is_found[mine].sum()), tuple(passages), len(lengths), held)

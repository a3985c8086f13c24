"""How many of the documents that are held back have a twin in the training text: the same but for small changes.

In: the files of ids of two splits.  Out: documents with a twin, of so many that were compared, and the share of all
their windows that is found.
The windows of a document that is held back are looked for in the training text; where most of them are found, it has a
twin. Of a large text only windows that begin with certain ids are looked at, so that it is one pass, of less than a
nanosecond for each id, in flat memory; a document without any of them is not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIKE = 0.8  # of a document's windows
LEAST_BYTES_OF_TEXT = 2_000  # to train on; of less there is nothing to say
WINDOW_BYTES = 64  # long enough to be no turn of phrase; shorter where documents are
# So many windows of each split are looked at, about; but of the training text no fewer than one in SPARSEST.
MOST_IN_TRAINING, MOST_HELD_BACK = 1 << 17, 1 << 20
SPARSEST = 1 << 10
# Ids that are mapped at once, since mapped pages that were read count as memory; and that are compared at once, which
# stay in the processor's cache.
MAPPED, AT_ONCE = 1 << 22, 1 << 18
MIX = np.uint64(0x9E3779B97F4A7C15)
HEAD_BITS = 16

Ids = NDArray[Any]
Places = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class SplitIds:
    """The files of a split, and what is known of it."""

    files: Sequence[Path]
    dtype: np.dtype[Any]
    tokens: int
    bytes_of_text: int


@dataclass(frozen=True)
class Twins:
    documents: int = 0
    compared: int = 0
    passages: float = 0.0
    """Of the windows of all documents, the share that is found."""

    @classmethod
    def told_in(cls, manifest: Mapping[str, Any]) -> Twins:
        """None of shards that were written before they were looked for."""
        return cls(**manifest.get("report", {}).get("twins", {}))

    @property
    def share(self) -> float:
        return self.documents / max(self.compared, 1)


def find_twins(held_back: SplitIds, training: SplitIds, end_of_text: int) -> Twins:
    if not held_back.tokens or training.bytes_of_text < LEAST_BYTES_OF_TEXT:
        return Twins()
    windows = _Windows.that_fit(held_back, training, end_of_text)
    hashes, heads, documents = _of_documents(held_back, windows, end_of_text)
    if not len(hashes):
        return Twins()
    wanted, number = np.unique(hashes, return_inverse=True)
    found = np.zeros(len(wanted), bool)
    likely = np.zeros(1 << HEAD_BITS, bool)
    likely[heads] = True
    for ids, _ in _parts(training, windows.length - 1):
        places = windows.places(ids)
        hashes = windows.hashes(ids, places[likely[windows.heads(ids, places)]])
        place = np.searchsorted(wanted, hashes)
        found[place[wanted.take(place, mode="clip") == hashes]] = True
    _, document = np.unique(documents, return_inverse=True)
    of_each = np.bincount(document)
    alike = np.bincount(document, weights=found[number]) >= ALIKE * of_each
    return Twins(int(alike.sum()), len(of_each), round(float(found[number].mean()), 4))


@dataclass(frozen=True)
class _Windows:
    """So many ids one after another, wherever the first one modulo a power of two is the chosen number."""

    length: int
    modulus: int
    chosen: int

    @classmethod
    def that_fit(cls, held_back: SplitIds, training: SplitIds, end_of_text: int) -> _Windows:
        ids, _ = next(_parts(held_back, 0))
        longest = WINDOW_BYTES * held_back.tokens / max(held_back.bytes_of_text, 1)
        if len(ends := np.flatnonzero(ids == end_of_text)):
            longest = min(longest, 0.75 * float(np.median(np.diff(ends, prepend=-1))))
        sparse = max(min(training.tokens / MOST_IN_TRAINING, SPARSEST), held_back.tokens / MOST_HELD_BACK, 1)
        modulus = 1 << int(np.ceil(np.log2(sparse)))
        counts = np.bincount(ids & (modulus - 1), minlength=modulus)
        chosen = int(np.argmin(np.abs(counts - len(ids) / modulus)))
        return cls(1 << int(np.log2(max(longest, 4))), modulus, chosen)

    def places(self, ids: Ids) -> Places:
        """Where windows begin."""
        last = max(len(ids) - self.length + 1, 0)
        if self.modulus == 1:
            return np.arange(last)
        found = [at + self._begins(ids[at : min(at + AT_ONCE, last)]) for at in range(0, last, AT_ONCE)]
        return np.concatenate([np.empty(0, np.int64), *found])

    def _begins(self, ids: Ids) -> Places:
        begins = np.zeros(-(-len(ids) // 8) * 8, bool)
        np.equal(ids & ids.dtype.type(self.modulus - 1), self.chosen, out=begins[: len(ids)])
        # There are few of them: to look at eight at a time takes half as long.
        eights = np.flatnonzero(begins.view(np.uint64) != 0)
        row, column = np.nonzero(begins.reshape(-1, 8)[eights])
        return eights[row] * 8 + column

    def hashes(self, ids: Ids, places: Places) -> Hashes:
        result = np.zeros(len(places), np.uint64)
        for word in _words(ids, places, self.length):
            result = (result ^ word) * MIX
            result ^= result >> np.uint64(32)
        return result

    def heads(self, ids: Ids, places: Places) -> Hashes:
        """A few bits of each window's first ids, which tell soon that most windows are not the ones sought."""
        (word,) = _words(ids, places, 8 // ids.itemsize)
        return (word * MIX) >> np.uint64(64 - HEAD_BITS)


def _words(ids: Ids, places: Places, length: int) -> Hashes:
    """(n,) places to (words, n): so many ids from each, four or two of them in a word."""
    if not len(places):
        return np.empty((length * ids.itemsize // 8, 0), np.uint64)
    rows = np.lib.stride_tricks.sliding_window_view(ids, length)[places]
    return np.ascontiguousarray(rows).view(np.uint64).T


def _of_documents(split: SplitIds, windows: _Windows, end_of_text: int) -> tuple[Hashes, Hashes, Places]:
    """The hashes and heads of the windows that lie within a document, each once for it, and the documents' numbers."""
    hashes, heads, documents = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    ended = 0
    for ids, new in _parts(split, windows.length - 1):
        places, ends = windows.places(ids), np.flatnonzero(ids == end_of_text)
        document = np.searchsorted(ends, places)
        within = np.append(ends, len(ids))[document] - places >= windows.length
        within &= ids[places] != ids[places + 1]  # a run of blanks, say, is found everywhere
        places, document = places[within], document[within] + ended
        hashed = windows.hashes(ids, places)
        _, once = np.unique(hashed ^ (document.astype(np.uint64) * MIX), return_index=True)
        hashes.append(hashed[once])
        heads.append(windows.heads(ids, places[once]))
        documents.append(document[once])
        ended += int(np.searchsorted(ends, new))
    return np.concatenate(hashes), np.concatenate(heads), np.concatenate(documents)


def _parts(split: SplitIds, overlap: int) -> Iterator[tuple[Ids, int]]:
    """All ids of a split, file by file and part by part, and how many of a part do not come again: a file's parts
    overlap."""
    for path in split.files:
        size = path.stat().st_size // split.dtype.itemsize
        for at in range(0, size - overlap, MAPPED):
            length = min(MAPPED + overlap, size - at)
            ids = np.memmap(path, split.dtype, "r", at * split.dtype.itemsize, (length,)).view(np.ndarray)
            yield ids, MAPPED if at + MAPPED < size - overlap else length

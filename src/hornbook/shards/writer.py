"""Pieces of text become files of ids, in a folder that outlives a crash.

In: batches of pieces, in the order in which they are read.  Out: `train-00000.bin` and so on, and what is in them.
After each file that is full, and at least every half minute, it is noted how far all of them are; from there another
process goes on, and the files come out the same, since nothing in them depends on how pieces were batched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hornbook.base import files, ours
from hornbook.base.errors import UserError
from hornbook.base.room import LARGER_DISK, Room
from hornbook.base.unfinished import AGAIN, BinaryWriter
from hornbook.shards.splits import SPLITS, Piece
from hornbook.text.encoder import Encoder, Ids, Offsets
from hornbook.text.tokenizer import Tokenizer

STATE = "unfinished.json"
NOTE_EVERY_SECONDS = 30.0


@dataclass
class SplitFiles:
    """The files of one split as they grow."""

    tokens: int = 0
    documents: int = 0
    bytes_of_text: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    open_bytes: int = 0
    """Of the file that is not full yet."""


class Encoded(NamedTuple):
    """Pieces of one split, as the ids that go into its files; where each one's end; and how much text they are."""

    split: str
    ids: Ids
    ends: Offsets
    documents: int
    bytes_of_text: int


class PieceEncoder:
    """Pieces to ids, for a thread of its own, since that takes longest."""

    def __init__(self, tokenizer: Tokenizer, choose: Callable[[Tokenizer], Encoder]) -> None:
        self._tokenizer, self._choose = tokenizer, choose

    @cached_property
    def inner(self) -> Encoder:
        return self._choose(self._tokenizer)

    def encode(self, batch: Sequence[Piece]) -> list[Encoded]:
        return [each for split in SPLITS for each in self._of_split(split, [p for p in batch if p.split == split])]

    def _of_split(self, split: str, batch: Sequence[Piece]) -> Iterator[Encoded]:
        for from_elsewhere, run in groupby(batch, lambda piece: piece.ids is not None):
            pieces = list(run)
            ids, ends, size = (self._checked if from_elsewhere else self._framed)(pieces)
            yield Encoded(split, ids, ends, sum(piece.ends for piece in pieces), size)

    def _framed(self, pieces: Sequence[Piece]) -> tuple[Ids, Offsets, int]:
        """Between what opens a document and what ends it."""
        dtype = dtype_of(self._tokenizer)
        opening, end, nothing = (
            np.array(each, dtype) for each in (self._tokenizer.opening, [self._tokenizer.end_of_text], [])
        )
        ids, places = self.inner.encode([piece.data for piece in pieces])
        parts = [
            part
            for piece, (first, last) in zip(pieces, pairwise(places.tolist()), strict=True)
            for part in (opening if piece.begins else nothing, ids[first:last], end if piece.ends else nothing)
        ]
        ends = np.cumsum(list(map(len, parts)))[2::3]
        return np.concatenate(parts, dtype=dtype, casting="unsafe"), ends, sum(len(piece.data) for piece in pieces)

    def _checked(self, pieces: Sequence[Piece]) -> tuple[Ids, Offsets, int]:
        """Those from elsewhere hold their ends of text already."""
        found = [self._tokenizer.checked(piece.ids, piece.name) for piece in pieces if piece.ids is not None]
        size = sum(len(self._tokenizer.decode_bytes(ids)) for ids in found)
        ids = np.concatenate([np.asarray(each, dtype_of(self._tokenizer)) for each in found])
        return ids, np.cumsum([len(each) for each in found]), size


def dtype_of(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


class ShardWriter:
    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        tokens_per_shard: int,
        state: dict[str, Any],
        text_bytes: int | None = None,
    ) -> None:
        """`text_bytes` are those of all the text, where that is known."""
        self._folder = folder
        self._room, self._text_bytes = Room(folder), text_bytes
        self._fingerprint = tokenizer.fingerprint
        self.dtype = dtype_of(tokenizer)
        self._bytes_per_shard = tokens_per_shard * self.dtype.itemsize
        self._key = state["key"]
        self.items: int = state.get("items", 0)
        """Things of the source that are in the files."""
        self.splits = {name: SplitFiles(**state.get("splits", {}).get(name, {})) for name in SPLITS}
        self._seconds = state.get("seconds", 0.0)
        self._began = self._noted_at = time.monotonic()
        self._open: dict[str, BinaryWriter] = {
            name: BinaryWriter(self._next_file(name), split.open_bytes)
            for name, split in self.splits.items()
            if split.open_bytes
        }

    @property
    def seconds(self) -> float:
        """Spent on it so far, by all processes that were at it."""
        return float(self._seconds + time.monotonic() - self._began)

    def add(self, batch: Sequence[Encoded], items: int) -> None:
        """Write a batch; with it, so many things of the source are in."""
        filled = False
        for encoded in batch:
            split = self.splits[encoded.split]
            self._ask_for_room(encoded.ids.nbytes, encoded.bytes_of_text)
            split.documents += encoded.documents
            split.bytes_of_text += encoded.bytes_of_text
            filled |= self._append(encoded.split, encoded.ids, encoded.ends)
        self.items = items
        if filled or time.monotonic() - self._noted_at >= NOTE_EVERY_SECONDS:
            self._note()

    def finish(self) -> None:
        for name in list(self._open):
            self._close(name)

    def abandon(self) -> None:
        for file in self._open.values():
            file.abandon()

    def _ask_for_room(self, size: int, bytes_of_text: int) -> None:
        """For these ids; and once, by what they are, for those of all the text that is not written yet."""
        told = ours.read_hidden(self._folder.name)
        final = str(self._folder if told is None else self._folder.with_name(told.name))
        if self._text_bytes is not None and bytes_of_text:
            left = self._text_bytes - sum(split.bytes_of_text for split in self.splits.values())
            self._room.ask(size / bytes_of_text * left, final, LARGER_DISK)
            self._text_bytes = None
        if (self._folder / STATE).exists():
            self._room.ask(size, str(self._folder), f"make room and {AGAIN}, or delete this folder")
        else:  # nothing will be left
            self._room.ask(size, final, LARGER_DISK)

    def _append(self, name: str, ids: Ids, ends: Offsets) -> bool:
        """Whether a file became full: it ends with the piece that fills it."""
        split, first, filled = self.splits[name], 0, False
        split.tokens += len(ids)
        while first < len(ids):
            if name not in self._open:
                self._open[name] = BinaryWriter(self._next_file(name))
            file = self._open[name]
            room = (self._bytes_per_shard - file.bytes_written) // self.dtype.itemsize
            place = int(np.searchsorted(ends, first + room))
            last = int(ends[place]) if place < len(ends) else len(ids)
            file.write(ids[first:last].data.cast("B"))
            if place < len(ends):
                self._close(name)
                filled = True
            first = last
        return filled

    def _next_file(self, name: str) -> Path:
        return self._folder / f"{name}-{len(self.splits[name].shards):05}.bin"

    def _close(self, name: str) -> None:
        file = self._open.pop(name)
        digest = file.close()
        facts = {"name": file.path.name, "bytes": file.bytes_written, "sha256": digest}
        self.splits[name].shards.append(facts)

    def _note(self) -> None:
        for name, split in self.splits.items():
            split.open_bytes = self._open[name].sync() if name in self._open else 0
        write_state(self._folder, self.state())
        self._noted_at = time.monotonic()

    def state(self) -> dict[str, Any]:
        splits = {name: asdict(split) for name, split in self.splits.items()}
        return {
            "key": self._key,
            "tokenizer": self._fingerprint,
            "items": self.items,
            "seconds": self.seconds,
            "splits": splits,
        }


def write_state(folder: Path, state: dict[str, Any]) -> None:
    files.write_json(folder / STATE, state)


def read_state(folder: Path, key: str) -> dict[str, Any] | None:
    """How far the work in this folder is, where it is the same work and all its files are there."""
    try:
        state = files.read_json(folder / STATE)
        if state["key"] != key or Tokenizer.load(folder).fingerprint != state["tokenizer"]:
            return None
        for name, split in state["splits"].items():
            wanted = {shard["name"]: shard["bytes"] for shard in split["shards"]}
            if any((folder / each).stat().st_size != size for each, size in wanted.items()):
                return None
            growing = folder / f"{name}-{len(split['shards']):05}.bin"
            if split["open_bytes"] and growing.stat().st_size < split["open_bytes"]:
                return None
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return None
    return state

"""Pieces of text become files of ids, in a folder that outlives a crash.

In: batches of pieces, in the order in which they are read.  Out: `train-00000.bin` and so on, and what is in them.
After each file that is full, and at least every half minute, it is noted how far all of them are; from there another
process goes on, and the files come out the same, since nothing in them depends on how pieces were batched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from hornbook.base import files, ours
from hornbook.base.errors import UserError
from hornbook.base.room import LARGER_DISK, Room
from hornbook.base.unfinished import AGAIN, BinaryWriter
from hornbook.shards.splits import SPLITS, Piece
from hornbook.shards.twins import SplitIds
from hornbook.text.encoder import Encoder, Ids, Offsets, framed
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


@dataclass(frozen=True)
class Encoded:
    """Pieces of one split: of text, with their ids and where each one's begin, or of ids from elsewhere."""

    split: str
    pieces: list[Piece]
    ids: Ids | None = None
    places: Offsets | None = None


class ShardWriter:
    """`encode` and `add` are for two threads: one encodes, and nothing else, since that takes longest, while the other
    writes what was encoded before."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        encoder: Callable[[Tokenizer], Encoder],
        tokens_per_shard: int,
        state: dict[str, Any],
        text_bytes: int | None = None,
    ) -> None:
        """`text_bytes` are those of all the text, where that is known."""
        self._folder = folder
        self._room, self._text_bytes = Room(folder), text_bytes
        self._tokenizer = tokenizer
        self._choose_encoder = encoder
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
        self._bytes_per_shard = tokens_per_shard * self.dtype.itemsize
        self._key = state["key"]
        self.items: int = state.get("items", 0)
        """Things of the source that are in the files."""
        self.splits = {name: SplitFiles(**state.get("splits", {}).get(name, {})) for name in SPLITS}
        self._failed = False
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

    @cached_property
    def encoder(self) -> Encoder:
        return self._choose_encoder(self._tokenizer)

    def encode(self, batch: Sequence[Piece]) -> list[Encoded]:
        found = []
        for name in SPLITS:
            for from_elsewhere, run in groupby((p for p in batch if p.split == name), lambda p: p.ids is not None):
                pieces = list(run)
                encoded = () if from_elsewhere else self.encoder.encode([piece.data for piece in pieces])
                found.append(Encoded(name, pieces, *encoded))
        return found

    def add(self, batch: Future[list[Encoded]], items: int) -> None:
        """Write a batch; with it, so many things of the source are in. After a failure nothing more is added."""
        if self._failed:
            return
        self._failed = True
        filled = False
        for encoded in batch.result():
            split = self.splits[encoded.split]
            ids, ends, bytes_of_text = self._framed(encoded)
            self._ask_for_room(ids.nbytes, bytes_of_text)
            split.documents += sum(piece.ends for piece in encoded.pieces)
            split.bytes_of_text += bytes_of_text
            filled |= self._append(encoded.split, ids, ends)
        self.items = items
        if filled or time.monotonic() - self._noted_at >= NOTE_EVERY_SECONDS:
            self._note()
        self._failed = False

    def finish(self) -> None:
        for name in list(self._open):
            self._close(name)

    def ids_of(self, name: str) -> SplitIds:
        """What is written of a split, whether its last file is full or not."""
        split = self.splits[name]
        paths = tuple(sorted(self._folder.glob(f"{name}-*.bin")))
        return SplitIds(paths, self.dtype, split.tokens, split.bytes_of_text)

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

    def _framed(self, encoded: Encoded) -> tuple[Ids, Offsets, int]:
        """The ids as they go into the files, where each piece's end, and the bytes of text."""
        pieces = encoded.pieces
        if encoded.ids is None or encoded.places is None:
            return self._ids_from_elsewhere(pieces)
        opening, end = self._tokenizer.opening, [self._tokenizer.end_of_text]
        before = [opening if piece.begins else [] for piece in pieces]
        after = [end if piece.ends else [] for piece in pieces]
        ids, ends = framed(encoded.ids, encoded.places, before, after, self.dtype)
        return ids, ends, sum(len(piece.data) for piece in pieces)

    def _ids_from_elsewhere(self, pieces: list[Piece]) -> tuple[Ids, Offsets, int]:
        """These hold their ends of text already."""
        found = [
            np.asarray(self._tokenizer.checked(piece.ids, piece.name), self.dtype)
            for piece in pieces
            if piece.ids is not None
        ]
        size = sum(len(self._tokenizer.decode_bytes(ids.tolist())) for ids in found)
        return np.concatenate(found), np.cumsum([len(ids) for ids in found]), size

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
        fingerprint = self._tokenizer.fingerprint
        return {
            "key": self._key,
            "tokenizer": fingerprint,
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

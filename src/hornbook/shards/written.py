"""What was written of a text becomes a manifest.

In: the files of each split, by one process or by many.  Out: the facts of them all, the fingerprint of the tokens among
them.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hornbook.shards.format import FORMAT_VERSION
from hornbook.shards.splits import Piece
from hornbook.shards.twins import SplitIds, Twins, find_twins
from hornbook.shards.writer import SplitFiles
from hornbook.text.readers import Source
from hornbook.text.streams import Tally
from hornbook.text.tokenizer import Tokenizer

YARDSTICK_BYTES = 8_000_000
LEAST_YARDSTICK_BYTES = 1000  # of less text, a compressor's own heads and tables are most of what it writes


@dataclass(frozen=True)
class Written:
    folder: Path
    tokenizer: Tokenizer
    dtype: np.dtype[Any]
    splits: dict[str, SplitFiles]
    tally: Tally
    duplicates: int
    encoder: str
    seconds: float

    def twins(self) -> Twins:
        return find_twins(self._ids_of("val"), self._ids_of("train"), self.tokenizer.end_of_text)

    def _ids_of(self, name: str) -> SplitIds:
        split = self.splits[name]
        paths = tuple(self.folder / shard["name"] for shard in split.shards)
        return SplitIds(paths, self.dtype, split.tokens, split.bytes_of_text)

    def manifest(
        self, source: Source, signature: str, key: str, kind: str, rule: str, twins: Twins, scale: dict[str, float]
    ) -> dict[str, Any]:
        """Of the source, prepared with these knobs."""
        splits: dict[str, Any] = {
            name: {key: value for key, value in asdict(split).items() if key != "open_bytes"}
            for name, split in self.splits.items()
            if name != "test" or split.shards
        }
        if scale:
            splits["val"]["yardsticks"] = scale
        totals = {
            name: sum(facts[name] for facts in splits.values()) for name in ("documents", "bytes_of_text", "tokens")
        }
        fingerprint = self.tokenizer.fingerprint
        content = [fingerprint, *(each["sha256"] for facts in splits.values() for each in facts["shards"])]
        return {
            "format_version": FORMAT_VERSION,
            "name": source.name.encode(errors="backslashreplace").decode(),
            "key": key,
            "dtype": f"uint{self.dtype.itemsize * 8}",
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer": kind,
            "tokenizer_fingerprint": fingerprint,
            "source_signature": signature,
            **({"origins": origins} if (origins := source.origins) else {}),
            "split_rule": rule,
            "reading": {
                "replaced_characters": self.tally.replaced,
                "skipped_records": self.tally.skipped,
                "attachments": self.tally.attachments,
                "left_out_files": source.left_out,
            },
            "report": totals
            | {
                "bytes_per_token": totals["bytes_of_text"] / max(totals["tokens"], 1),
                "duplicates": self.duplicates,
                "twins": asdict(twins),
                "encoder": self.encoder if totals["tokens"] else None,
                "seconds": self.seconds,
                "bytes_per_second": totals["bytes_of_text"] / max(self.seconds, 1e-9),
            },
            "splits": splits,
            "fingerprint": hashlib.sha256("".join(content).encode()).hexdigest(),
        }


class HeldBack:
    """What is held back of a text, as long as it is little enough to be compressed for scale."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self._size = 0

    def add(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if piece.split == "val" and piece.ids is None:
                self.add_text(piece.data)

    def add_text(self, text: bytes) -> None:
        if self._size <= YARDSTICK_BYTES:
            self.texts.append(text)
            self._size += len(text)


def batches(
    found: Iterable[list[Piece]], characters: int, held_back: HeldBack, have: int = 0
) -> Iterator[tuple[list[Piece], int, int]]:
    """Pieces, how many things of the source are read with them, and their bytes; without the first `have`."""
    batch: list[Piece] = []
    size = items = 0
    for items, pieces in enumerate(found, start=1):
        held_back.add(pieces)
        if items <= have:
            continue
        batch += pieces
        size += sum(len(piece.data) for piece in pieces)
        if size >= characters:
            yield batch, items, size
            batch, size = [], 0
    yield batch, items, size


def yardsticks(text: Sequence[bytes]) -> dict[str, float]:
    """Bits per byte that general compressors need for a text, for scale; of a long one not told."""
    whole = b"".join(text)
    if not LEAST_YARDSTICK_BYTES <= len(whole) <= YARDSTICK_BYTES:
        return {}
    # Preset 9 of xz, without clearing memory for eight times as much as there may be to remember.
    xz = {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": YARDSTICK_BYTES}
    sizes = {"gzip -9": len(gzip.compress(whole, 9)), "xz -9": len(lzma.compress(whole, filters=[xz]))}
    return {name: 8 * size / len(whole) for name, size in sizes.items()}

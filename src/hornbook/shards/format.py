"""Tokens on disk.

In: a folder that `prepare` wrote.  Out: `Shards`, whose splits are read like one long array of ids.
Format: `manifest.json` and a tokenizer, beside flat little-endian files `train-00000.bin`, `val-00000.bin`: uint16,
or uint32 where the vocabulary needs it. The manifest is written last; a folder without one is not shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.text.tokenizer import TOKENIZER_FILES, Tokenizer

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


def is_shards(folder: Path) -> bool:
    # By its listed name: where case does not count, as on most Macs, a model's MANIFEST.json would pass for this one.
    return folder.is_dir() and any(path.name == MANIFEST for path in folder.iterdir())


@dataclass(frozen=True)
class Shards:
    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Read the manifest and see that the files have the sizes it tells; `verify` reads every byte."""
        if not is_shards(folder):
            raise UserError(f"{folder}: not prepared data (no {MANIFEST}); make it with: hornbook prepare TEXT")
        manifest = files.read_json(folder / MANIFEST)
        if manifest.get("format_version") != FORMAT_VERSION:
            raise UserError(f"{folder}: another version of the format; prepare the text again: hornbook prepare TEXT")
        try:
            if not files.is_unchanged(manifest):
                raise UserError(f"{folder / MANIFEST}: was edited or damaged; prepare the text again")
            shards = cls(folder, manifest)
            for name in manifest["splits"]:
                shards.split(name)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / MANIFEST}: damaged ({error!r}); prepare the text again") from None
        return shards

    def split(self, name: str) -> TokenArray:
        return TokenArray.open(self.folder, self.manifest["splits"][name], self.manifest["dtype"])

    def split_facts(self, name: str) -> dict[str, Any]:
        """Tokens, documents and bytes of text of a split, and what gzip and xz make of it."""
        facts: dict[str, Any] = self.manifest["splits"][name]
        return facts

    def bytes_of_text(self, split: str) -> int:
        return int(self.split_facts(split)["bytes_of_text"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder)

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    @property
    def fingerprint(self) -> str:
        """The same for the same tokens in the same order, wherever and whenever they were prepared."""
        return str(self.manifest["fingerprint"])

    def damage(self) -> str | None:
        """What is wrong with the folder, every byte read; None when nothing is."""
        try:
            self.open(self.folder)
            tokenizer = Tokenizer.load(self.folder)
        except UserError as error:
            return error.mistakes[0]
        hashes = {
            each["name"]: each["sha256"] for facts in self.manifest["splits"].values() for each in facts["shards"]
        }
        for path in sorted(self.folder.iterdir()):
            if path.name not in {MANIFEST, *TOKENIZER_FILES, *hashes}:
                return f"{path.name} does not belong there"
            if path.is_symlink():
                return f"{path.name} is a link"
            if path.name in hashes and files.sha256(path) != hashes[path.name]:
                return f"{path.name} has changed since it was written"
        if tokenizer.fingerprint != self.manifest["tokenizer_fingerprint"]:
            return "tokenizer.json has changed since it was written"
        return None


class TokenArray:
    """The files of a split, memory-mapped, as one array."""

    def __init__(self, parts: list[NDArray[Any]]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    @classmethod
    def open(cls, folder: Path, facts: dict[str, Any], dtype: str) -> TokenArray:
        parts: list[NDArray[Any]] = []
        for shard in facts["shards"]:
            path = folder / shard["name"]
            there = path.stat().st_size if path.is_file() else -1
            if there != shard["bytes"]:
                what = "is missing" if there < 0 else f"has {there} bytes instead of {shard['bytes']}"
                raise UserError(f"{path}: {what}; prepare the text again: hornbook prepare TEXT")
            if there:
                parts.append(np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r"))
        return cls(parts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """`length` ids from place `start`, across the files' borders."""
        if start < 0 or start + length > len(self):
            raise IndexError(f"ids {start} to {start + length} of {len(self)}")
        taken: list[NDArray[Any]] = []
        part = int(np.searchsorted(self._ends, start, side="right"))
        while length > 0:
            first = start - (int(self._ends[part - 1]) if part else 0)
            piece = self._parts[part][first : first + length]
            taken.append(piece)
            start, length, part = start + len(piece), length - len(piece), part + 1
        return np.concatenate(taken).astype(np.int64) if taken else np.empty(0, np.int64)

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """(n,) places to (n, length) ids."""
        return np.stack([self.read(int(start), length) for start in starts])

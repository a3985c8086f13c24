"""Tokens on disk.

In: a folder that `prepare` wrote.  Out: `Shards`, whose splits are read like one long array of ids.
Format: `manifest.json` and a tokenizer, beside flat little-endian files `train-00000.bin`, `val-00000.bin`: uint16,
or uint32 where the vocabulary needs it. The manifest is written last; a folder without one is not shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.shards import verified
from hornbook.text.tokenizer import TOKENIZER_FILES, Tokenizer

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MEND = "prepare the text again: hornbook prepare TEXT --out FOLDER"


class _Facts(BaseModel):
    """What a manifest must tell; it may tell more. Its own hash proves only that nobody changed it by accident."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _FileFacts(_Facts):
    name: str = Field(pattern=r"^(train|val|test)-\d{5,9}\.bin$")  # beside the manifest, and nowhere else
    bytes: int = Field(ge=0)
    sha256: str


class _SplitFacts(_Facts):
    tokens: int = Field(ge=0)
    documents: int = Field(ge=0)
    bytes_of_text: int = Field(ge=0)
    shards: list[_FileFacts]
    yardsticks: dict[str, float] = {}


class _Splits(_Facts):
    train: _SplitFacts
    val: _SplitFacts
    test: _SplitFacts | None = None

    def each(self) -> Iterator[_SplitFacts]:
        yield from (split for split in (self.train, self.val, self.test) if split is not None)


class _Manifest(_Facts):
    name: str = Field(pattern=r"^[^\x00-\x1f]*$")
    dtype: Literal["uint16", "uint32"]
    vocab_size: int = Field(ge=2, le=2**32)
    tokenizer: str
    tokenizer_fingerprint: str
    fingerprint: str
    splits: _Splits

    def mistake(self) -> str | None:
        size = int(self.dtype.removeprefix("uint")) // 8
        for split in self.splits.each():
            if sum(each.bytes for each in split.shards) != split.tokens * size:
                return f"{split.tokens} tokens of {size} bytes, but other sizes of files"
        return None


def is_shards(folder: Path) -> bool:
    # By its listed name: where case does not count, as on most Macs, a model's MANIFEST.json would pass for this one.
    return folder.is_dir() and any(path.name == MANIFEST for path in folder.iterdir())


def listed(folder: Path) -> set[str] | None:
    """The files of ours in a folder of shards; None where its manifest does not prove to be ours."""
    try:
        manifest = files.read_json(folder / MANIFEST) if is_shards(folder) else {}
        return {MANIFEST, *TOKENIZER_FILES, *_hashes(manifest)} if files.is_unchanged(manifest) else None
    except (UserError, KeyError, TypeError, AttributeError):
        return None


def _hashes(manifest: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["sha256"] for facts in manifest["splits"].values() for each in facts["shards"]}


@dataclass(frozen=True)
class Shards:
    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Read the manifest and see that the files have the sizes it tells."""
        if not is_shards(folder):
            raise UserError(f"{folder}: not prepared data (no {MANIFEST}); make it with: hornbook prepare TEXT")
        manifest = files.read_json(folder / MANIFEST)
        if manifest.get("format_version") != FORMAT_VERSION:
            raise UserError(f"{folder / MANIFEST}: another version of the format; {MEND}")
        if manifest.get("sha256") is None or not files.is_unchanged(manifest):
            raise UserError(f"{folder / MANIFEST}: was edited or damaged; prepare the text again")
        try:
            mistake = _Manifest.model_validate(manifest).mistake()
        except ValidationError as error:
            first = error.errors()[0]
            mistake = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        if mistake:
            raise UserError(f"{folder / MANIFEST}: damaged ({mistake}); prepare the text again")
        shards = cls(folder, manifest)
        for name in manifest["splits"]:
            shards.split(name)
        return shards

    def split(self, name: str) -> TokenArray:
        return TokenArray.open(self.folder, self.manifest["splits"][name], self.manifest["dtype"], self.vocab_size)

    def split_facts(self, name: str) -> dict[str, Any]:
        """Tokens, documents and bytes of text of a split, and what gzip and xz make of it."""
        facts: dict[str, Any] = self.manifest["splits"][name]
        return facts

    def bytes_of_text(self, split: str) -> int:
        return int(self.split_facts(split)["bytes_of_text"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self._load_tokenizer()

    def _load_tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.load(self.folder)
        if tokenizer.fingerprint != self.manifest["tokenizer_fingerprint"]:
            raise UserError(f"{self.folder / TOKENIZER_FILES[0]}: has changed since it was written; {MEND}")
        return tokenizer

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    @property
    def fingerprint(self) -> str:
        """The same for the same tokens in the same order, wherever and whenever they were prepared."""
        return str(self.manifest["fingerprint"])

    def checked(self, whole: bool = False, say: Callable[[str], object] = lambda _: None) -> Shards:
        """Itself, its tokenizer and every byte as they were written, or a UserError. What was read whole before, and
        looks untouched since, is read again only with `whole`."""
        self._load_tokenizer()
        if (what := self._changed(whole, say)) is not None:
            raise UserError(f"{self.folder}: {what}; {MEND}")
        return self

    def damage(self) -> str | None:
        """What is wrong with the folder, every byte read; None when nothing is."""
        try:
            self.open(self.folder)
            self._load_tokenizer()
        except UserError as error:
            return error.mistakes[0].removeprefix(f"{self.folder}/")
        return self._changed(whole=True)

    def _changed(self, whole: bool, say: Callable[[str], object] = lambda _: None) -> str | None:
        hashes = _hashes(self.manifest)
        for name in hashes:
            if (self.folder / name).is_symlink():
                return f"{name} is a link"
        changed = verified.changed(self.folder, hashes, whole, say)
        return None if changed is None else f"{changed} has changed since it was written"

    def note_written(self) -> None:
        """They have just been written, and hashed on the way."""
        verified.note_written(self.folder, _hashes(self.manifest))


class TokenArray:
    """The files of a split, memory-mapped, as one array. An id that a vocabulary does not have ends the reading: the
    file was damaged where its size does not show it."""

    def __init__(self, parts: list[NDArray[Any]], vocab_size: int | None = None) -> None:
        self._parts = parts
        self._vocab_size = vocab_size
        self._ends = np.cumsum([len(part) for part in parts])

    @classmethod
    def open(cls, folder: Path, facts: dict[str, Any], dtype: str, vocab_size: int) -> TokenArray:
        parts: list[NDArray[Any]] = []
        for shard in facts["shards"]:
            path = folder / shard["name"]
            there = path.stat().st_size if path.is_file() else -1
            if there != shard["bytes"]:
                what = "is missing" if there < 0 else f"has {there} bytes instead of {shard['bytes']}"
                raise UserError(f"{path}: {what}; {MEND}")
            if there:
                parts.append(np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r"))
        return cls(parts, vocab_size)

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
            if self._vocab_size is not None and int(piece.max()) >= self._vocab_size:
                raise UserError(
                    f"{getattr(self._parts[part], 'filename', 'ids')}: damaged (id {int(piece.max()):,}, vocabulary "
                    f"of {self._vocab_size:,}); {MEND}"
                )
            taken.append(piece)
            start, length, part = start + len(piece), length - len(piece), part + 1
        return np.concatenate(taken).astype(np.int64) if taken else np.empty(0, np.int64)

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """(n,) places to (n, length) ids."""
        return np.stack([self.read(int(start), length) for start in starts])

"""What a reader is given, and what it gives.

In: a file, a name for its documents, and how it is to be read.  Out: the words in which readers speak: `Document`, and
`Trouble` with its place. The readers are in text/formats.py, and in markup.py, tables.py and columns.py beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from hornbook.base import files
from hornbook.text.streams import (
    BLOCK,
    LARGEST_RECORD,
    Cutter,
    Errors,
    Tally,
    Trouble,
    compression_of,
    decode,
    read_blocks,
    text_only,
    until_trouble,
    with_plain_line_ends,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOO_LONG = f"longer than {LARGEST_RECORD >> 20} MB; split it, or leave it out with --text.bad-records skip"


@dataclass(frozen=True)
class Document:
    """A text, or the ids of one where it was encoded elsewhere. One that does not end is a piece: the next goes on."""

    name: str
    text: str
    ends: bool = True
    ids: NDArray[np.uint32] | None = field(default=None, compare=False)
    split: str = ""
    """train, val or test, where the corpus brings splits of its own."""

    @property
    def size(self) -> int:
        """Characters, or ids."""
        return len(self.text) if self.ids is None else len(self.ids)

    def cut(self, place: int) -> tuple[Document | None, Document | None]:
        """What comes before and what after a place; None where that is nothing."""
        if place <= 0:
            return None, self
        if place >= self.size:
            return self, None
        if self.ids is None:
            return replace(self, text=self.text[:place], ends=True), replace(self, text=self.text[place:])
        return replace(self, ids=self.ids[:place], ends=True), replace(self, ids=self.ids[place:])


Found = Document | Trouble


class Input(NamedTuple):
    """A file, the name that its documents bear, and how it is read: see TextConfig."""

    path: Path
    name: str
    tally: Tally
    format: str | None = None
    field: str | None = None
    document: Literal["file", "line", "row"] | None = None
    errors: Errors = "strict"
    late: list[Trouble] | None = None
    """Trouble that is told when all is read, since nothing is lost by it."""
    headers: tuple[str, ...] = ()
    """Of letters, those that stand above the text."""
    span: tuple[int, int] | None = None
    """The bytes of it that are read, where that is not all."""

    def blocks(self) -> Iterator[bytes]:
        return read_blocks(self.path, self.late, self.span)

    def bytes_if_small(self) -> bytes | None:
        """All of a file that is one block; None where it is to be read block by block."""
        return None if compression_of(self.path.name) else files.read_if_small(self.path, BLOCK)

    def text_blocks(self) -> Iterator[bytes]:
        """Without byte-order mark; what follows the beginning of a file is not looked at, whether it is text."""
        return text_only(self.blocks()) if self.span is None or self.span[0] == 0 else self.blocks()

    def decode(self, data: bytes) -> str:
        return decode(data, self.errors, self.tally)

    def record(self, place: str, text: str) -> Document:
        return Document(f"{self.name} {place}".rstrip(), with_plain_line_ends(text))


def in_pieces(name: str, texts: Iterable[str]) -> Iterator[Found]:
    """A text as one document, in pieces where it is long; trouble that ends it is told after what came before."""
    cutter, troubles = Cutter(), list[Trouble]()
    for text in until_trouble(texts, troubles):
        for piece in cutter.add(text):
            yield Document(name, piece, ends=False)
    yield Document(name, cutter.end())
    yield from troubles


def choose_field(holds_text: Mapping[str, bool]) -> str:
    """`text`, or the only field that holds any."""
    if "text" in holds_text:
        return "text"
    texts = [name for name, is_text in holds_text.items() if is_text]
    if len(texts) == 1:
        return texts[0]
    if not texts:
        raise Trouble(f"no field holds text; it has {listed(holds_text)}")
    raise Trouble(f"which field holds the text? --text.field with one of {listed(texts)}")


def read_whole(blocks: Iterable[bytes]) -> bytes:
    """What has to be read whole, if it is not too long for that."""
    parts, size = [], 0
    for block in blocks:
        parts.append(block)
        size += len(block)
        if size > LARGEST_RECORD:
            raise Trouble(TOO_LONG)
    return b"".join(parts)


def short(name: str) -> str:
    return repr(name if len(name) <= 30 else name[:27] + "...")


def listed(names: Iterable[str]) -> str:
    shown = [short(str(name))[1:-1] for name in names]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "") if shown else "none"

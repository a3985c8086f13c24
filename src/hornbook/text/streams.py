"""Bytes become blocks, lines and text, in flat memory.

In: a file, compressed or not.  Out: blocks of its bytes decompressed, its lines, or its text, UTF-8 without byte-order
mark, line ends as `\\n`. Nothing here holds more than one line or one block, however much a file expands to. A
compression is one entry in COMPRESSIONS.
"""

from __future__ import annotations

import bz2
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

BLOCK = 1 << 20
# A line, row or element above this is damage or an attack, not a document; where it ends is not waited for.
LARGEST_RECORD = 64 << 20
# A longer text comes in pieces, so that a file of any size fits in memory.
PIECE = 8 << 20
# What a decompressor may claim for itself; a hostile header asks for gigabytes.
DECOMPRESSOR_BYTES = 256 << 20

Errors = Literal["strict", "replace"]
T = TypeVar("T")


class Trouble(Exception):  # noqa: N818
    """What is wrong with a record, or with the rest of a file, and at which place in it."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(f"{place}: {what}")
        self.what = what
        self.place = place

    def at(self, place: str) -> Trouble:
        return Trouble(self.what, place)


def brief(error: Exception) -> str:
    """The first words of a library's message, so that they leave room for the file's name."""
    first = " ".join(str(error).split()).partition(". ")[0]
    return first if len(first) <= 70 else first[:67] + "..."


@dataclass
class Tally:
    """What was met on the way through a source."""

    replaced: int = 0
    """Characters that were no UTF-8 and became U+FFFD."""
    skipped: int = 0
    """Records that were passed over."""
    first_skipped: str = ""
    """Where the first of them is, and what was wrong with it."""
    attachments: int = 0
    """Of letters, which are passed over."""

    def add(self, other: Tally) -> None:
        """What was met after that."""
        self.replaced += other.replaced
        self.skipped += other.skipped
        self.attachments += other.attachments
        self.first_skipped = self.first_skipped or other.first_skipped


class _Gzip:
    """zlib's decompressor with the ways of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _zstd() -> Any:
    # Python 3.14's module, or its backport: the `zstandard` package takes a file that was cut off for a whole one.
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 27})


# Not the openers of the standard library: after the first of several streams, those of bz2 and xz take damage for the
# end of the file, and tell nothing.
COMPRESSIONS: dict[str, Callable[[], Any]] = {
    ".gz": _Gzip,
    ".zst": _zstd,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=DECOMPRESSOR_BYTES),
}
# First bytes that tell what a stream without a name is.
MAGIC = {
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"BZh": ".bz2",
    b"\xfd7zXZ\0": ".xz",
    b"PAR1": ".parquet",
    b"\x89HDF\r\n\x1a\n": ".h5",
}


LONGEST_MAGIC = max(map(len, MAGIC))
KEEP_SOUND_PART = "or keep what comes before: --text.bad-records skip"


def ending_by_magic(data: bytes) -> str:
    """The ending that a file with these first bytes should have, or none."""
    return next((ending for magic, ending in MAGIC.items() if data.startswith(magic)), "")


def compression_of(name: str) -> str:
    """The ending of a compressed file, or none."""
    ending = name[name.rfind(".") :].lower()
    return ending if ending in COMPRESSIONS else ""


class _OtherDataError(Exception):
    """What follows the compressed data is none; all of that was read."""


def read_blocks(path: Path, late: list[Trouble] | None = None, span: tuple[int, int] | None = None) -> Iterator[bytes]:
    """The bytes of a file, decompressed, in blocks of at most a megabyte; of one that is not compressed, those of a
    span alone. Trouble that takes nothing from them is put into `late` where that is given."""
    compression = compression_of(path.name)
    try:
        with open(path, "rb") as file:
            if span is not None:
                yield from _of_span(file, *span)
            elif compression:
                yield from _decompressed(file, compression)
            else:
                yield from iter(lambda: file.read(BLOCK), b"")
    except _OtherDataError:
        trouble = Trouble(f"other data follows its {compression[1:]} data; cut that off, {KEEP_SOUND_PART}")
        if late is None:
            raise trouble from None
        late.append(trouble)
    except EOFError:
        raise Trouble(
            f"ends before its compressed data does: it was cut off; fetch it again, {KEEP_SOUND_PART}"
        ) from None
    except MemoryError:
        raise Trouble("asks for too much memory to be decompressed; compress it again with a smaller window") from None
    except OSError as error:
        if error.errno is not None:
            raise Trouble(f"cannot be read ({error.strerror})") from None
        raise _unsound(compression, error) from None
    except Exception as error:  # zlib, lzma and zstd each have an error of their own
        if not compression:
            raise
        raise _unsound(compression, error) from None


def _of_span(file: IO[bytes], begin: int, end: int) -> Iterator[bytes]:
    file.seek(begin)
    while begin < end and (block := file.read(min(BLOCK, end - begin))):
        begin += len(block)
        yield block


def _unsound(compression: str, error: Exception) -> Trouble:
    return Trouble(f"not sound {compression[1:]} data ({brief(error)}); fetch it again, {KEEP_SOUND_PART}")


def _decompressed(file: IO[bytes], compression: str) -> Iterator[bytes]:
    """One compressed stream, or several one after another; zeros after them are padding."""
    begin = COMPRESSIONS[compression]
    engine, waiting = begin(), b""
    while True:
        if engine.eof:
            waiting = engine.unused_data.lstrip(b"\0")
            while len(waiting) < LONGEST_MAGIC and (more := file.read(BLOCK)):
                waiting = (waiting + more).lstrip(b"\0")
            if not waiting:
                return
            if ending_by_magic(waiting) != compression and not _is_skippable(waiting):
                raise _OtherDataError
            engine = begin()
        elif engine.needs_input:
            waiting = file.read(BLOCK)
            if not waiting:
                raise EOFError
        block = engine.decompress(waiting, BLOCK)
        waiting = b""
        if block:
            yield block


def _is_skippable(data: bytes) -> bool:
    """Whether it begins with a frame of zstd that holds no text; some writers put an index into one."""
    return 0x50 <= data[0] <= 0x5F and data[1:4] == b"\x2a\x4d\x18"


def until_trouble(items: Iterable[T], troubles: list[Trouble]) -> Iterator[T]:
    """The same; trouble that ends them is put into the list, for when what came before it is used."""
    try:
        yield from items
    except Trouble as trouble:
        troubles.append(trouble)


def text_only(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same blocks without byte-order mark, once the first show that they are text."""
    head, troubles = b"", list[Trouble]()
    blocks = until_trouble(blocks, troubles)
    for block in blocks:
        head += block
        if len(head) >= 1 << 16:
            break
    if head or not troubles:
        yield text_begins(head)
    yield from blocks
    for trouble in troubles:
        raise trouble


# The longer before what they begin with.
OTHER_UNICODE = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def text_begins(head: bytes) -> bytes:
    """The first bytes of a text without byte-order mark, if they are of a text."""
    for mark, name in OTHER_UNICODE.items():
        if head.startswith(mark):
            raise Trouble(f"{name.upper()}, not UTF-8 text; convert it: iconv -f {name} -t utf-8")
    # A zstd frame need not hold a zero.
    if head.find(0, 0, 1 << 16) >= 0 or MAGIC.get(head[:4]) == ".zst":
        if ending := ending_by_magic(head):
            raise Trouble(f"holds {ending[1:]} data, not text; give it a name that ends in {ending}")
        raise Trouble("a binary file, not text; leave it out, or convert it to text first")
    return head.removeprefix(b"\xef\xbb\xbf")


def read_lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number, without its end; None where it is longer than any record may be."""
    number, size, parts = 1, 0, list[bytes]()
    for block in blocks:
        *whole, last = block.split(b"\n")
        for part in whole:
            size += len(part)
            yield number, b"".join([*parts, part]) if size <= LARGEST_RECORD else None
            number, size, parts = number + 1, 0, []
        size += len(last)
        parts = [*parts, last] if size <= LARGEST_RECORD else []
    if size:
        yield number, b"".join(parts) if size <= LARGEST_RECORD else None


def read_text_blocks(blocks: Iterable[bytes], errors: Errors, tally: Tally) -> Iterator[str]:
    """The text of blocks of bytes."""
    line = 1
    for data in _whole_characters(blocks):
        yield with_plain_line_ends(decode(data, errors, tally, line))
        line += data.count(b"\n")


def with_plain_line_ends(text: str) -> str:
    # Looking for one letter is ten times as fast as looking for two, and mostly there is none.
    return text.replace("\r\n", "\n") if "\r" in text else text


def read_escaped_blocks(blocks: Iterable[bytes]) -> Iterator[str]:
    """The same, with bytes that are no UTF-8 kept for `without_escaped_bytes`."""
    for data in _whole_characters(blocks):
        yield data.decode(errors="surrogateescape")


def decode(data: bytes, errors: Errors, tally: Tally, first_line: int = 0) -> str:
    """UTF-8 to text; what is not UTF-8 is trouble, or is replaced and counted."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if errors == "strict":
            line = first_line + data.count(b"\n", 0, error.start)
            raise Trouble(
                "not UTF-8 text; convert it (iconv -f latin1 -t utf-8), or --text.errors replace",
                f"line {line}" if first_line else "",
            ) from None
    text = data.decode(errors="replace")
    tally.replaced += text.count("\ufffd") - data.count(b"\xef\xbf\xbd")
    return text


def without_escaped_bytes(text: str, errors: Errors, tally: Tally) -> str:
    """Text that was decoded with `surrogateescape`, and what could not be decoded told or replaced only now: so a row
    or element is found whole before its bytes are judged."""
    return text if text.isascii() else decode(text.encode(errors="surrogateescape"), errors, tally)


def without_lone_surrogates(text: str, errors: Errors, tally: Tally) -> str:
    r"""JSON can write half of a character, as \ud800: no text can hold it."""
    if text.isascii():
        return text
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        if errors == "strict":
            raise Trouble(
                "half of a surrogate pair, which is no character; mend it, or --text.errors replace"
            ) from None
    text, number = re.subn("[\ud800-\udfff]", "\ufffd", text)
    tally.replaced += number
    return text


class Cutter:
    """Cuts a long text into pieces at places that no tokenizer's piece crosses, as long as it has any."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0

    def add(self, text: str) -> Iterator[str]:
        self._parts.append(text)
        self._size += len(text)
        if self._size <= PIECE:
            return
        # The last part mostly has a place to cut at, and the others need not be copied twice.
        cut = _place_to_cut(text, 0, PIECE - self._size + len(text))
        if cut and len(text) - cut <= PIECE:
            yield "".join([*self._parts[:-1], text[:cut]])
            self._parts, self._size = [text[cut:]], len(text) - cut
            return
        held = "".join(self._parts)
        begin = 0
        while len(held) - begin > PIECE:
            cut = _place_to_cut(held, begin, begin + PIECE) or begin + PIECE
            yield held[begin:cut]
            begin = cut
        self._parts, self._size = [held[begin:]], len(held) - begin

    def end(self) -> str:
        return "".join(self._parts)


def _place_to_cut(text: str, begin: int, limit: int) -> int:
    """The last place up to a limit where a line ends between two lines that are not blank and not indented; failing
    that, where a single blank begins; or 0."""
    for mark, after in (("\n", 1), (" ", 0)):
        place = limit
        for _ in range(10_000):
            place = text.rfind(mark, begin + 1, place)
            if place < 0:
                break
            if not text[place - 1].isspace() and not text[place + 1].isspace():
                return place + after
    return 0


def _whole_characters(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, cut so that no character, and no `\\r\\n`, is cut in two."""
    rest = b""
    for block in blocks:
        data = rest + block
        cut = len(data) - _unfinished(data)
        yield data[:cut]
        rest = data[cut:]
    yield rest


def _unfinished(data: bytes) -> int:
    """How many bytes at the end wait for others."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:  # the first byte of a character of 2, 3 or 4
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if length > back else 0
        if byte < 0x80:
            break
    return 1 if data.endswith(b"\r") else 0

"""TensorFlow's checkpoints, as OpenAI published GPT-2 in, without TensorFlow.

In: a folder, or PREFIX of `PREFIX.index` and `PREFIX.data-00000-of-00001` (or several).  Out: tensors by name, each
read, and its sum checked, when it is asked for.
The index is a sorted table: blocks of names, each written as what differs from the name before, with a table of blocks
behind them and the place of that at the very end. A name's value says where in the data files its numbers are. Each
block and each tensor has a CRC-32C. Nothing that the index claims is believed before it is seen to lie in the files.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from hornbook.base.errors import UserError
from hornbook.exchange.crc32c import crc32c
from hornbook.exchange.refusal import FormatError, naming, open_file

FOOTER = 48
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
TRAILER = 5  # behind a block: how it is compressed, and its sum
LARGEST_INDEX = 64 << 20
MOST_ENTRIES = 50_000
LONGEST_NAME = 1000
LONGEST_VALUE = 1000
MOST_SHARDS = 10_000
# A text in which TensorFlow 2 notes what belongs to which object: no weights.
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
TEXT = 7
DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    9: torch.int64,
    14: torch.bfloat16,
    19: torch.float16,
}
Fields = list[tuple[int, int | bytes]]


@dataclass(frozen=True)
class Entry:
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    sum: int


class Checkpoint(Mapping[str, torch.Tensor]):
    """Tensors by name; one is read anew each time that it is asked for."""

    def __init__(self, shards: list[Path], entries: dict[str, Entry]) -> None:
        self._shards = shards
        self._entries = {name: entry for name, entry in entries.items() if name != OBJECT_GRAPH}

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> torch.Tensor:
        entry = self._entries[name]
        path = self._shards[entry.shard]
        with naming(path):
            if entry.dtype not in DTYPES:
                kind = "text" if entry.dtype == TEXT else f"numbers of kind {entry.dtype}"
                raise FormatError(f"{_short(name)} holds {kind}, which weights never are; leave it out")
            data = bytearray(entry.size)
            with open_file(path) as file:
                file.seek(entry.offset)
                if file.readinto(data) != entry.size:
                    raise FormatError("was cut off since it was opened; fetch it anew")
            if _masked(crc32c(data)) != entry.sum:
                raise FormatError(f"{_short(name)} has changed since it was written (crc32c); fetch the file anew")
            if not data:
                return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
            return torch.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, or of a prefix."""
    index = _index_of(path)
    with naming(index):
        data = _read_index(index)
        table = dict(_table(data))
        header = _fields(table.pop(b"", b""))
        count = _whole(header, 1)
        if not 0 < count <= MOST_SHARDS:
            raise FormatError(f"claims {count} data files; is it a TensorFlow checkpoint?")
        if _whole(header, 2):
            raise FormatError("was written on a big-endian machine; load it in TensorFlow and save it on another")
        prefix = index.name.removesuffix(".index")
        shards = [index.with_name(f"{prefix}.data-{shard:05}-of-{count:05}") for shard in range(count)]
        sizes = [_size_of(shard) for shard in shards]
        entries = {_text(name): _entry(_text(name), value) for name, value in table.items()}
        for name, entry in entries.items():
            _check_place(name, entry, sizes)
        _check_apart(entries)
    return Checkpoint(shards, entries)


def _index_of(path: Path) -> Path:
    if not path.is_dir():
        if path.suffix == ".index":
            return path
        index = path.with_name(path.name + ".index")
        if not index.is_file():
            raise UserError(f"{path}: no TensorFlow checkpoint there (no {index.name})")
        return index
    named: list[str] = []
    if (path / "checkpoint").is_file():
        with naming(path / "checkpoint"), open_file(path / "checkpoint") as file:
            text = file.read(1 << 16).decode(errors="replace")
        # It may be a path on the machine that wrote it: the file is looked for here, and nowhere else.
        named = [
            f"{Path(name).name}.index"
            for name in re.findall(r'^model_checkpoint_path: *"([^"\n]+)"', text, re.MULTILINE)
        ]
    there = named or sorted(each.name for each in path.glob("*.index"))
    if len(there) != 1 or not (path / there[0]).is_file():
        what = f"{there[0][:60]} is missing" if len(there) == 1 else f"{len(there)} of *.index"
        raise UserError(f"{path}: no TensorFlow checkpoint there ({what}); name its prefix, such as model.ckpt")
    return path / there[0]


def _size_of(shard: Path) -> int:
    try:
        found = shard.stat()
    except OSError:
        raise FormatError(f"{shard.name} is missing beside it; fetch all files of the checkpoint") from None
    if not stat.S_ISREG(found.st_mode):
        raise FormatError(f"{shard.name} beside it is not a file")
    return found.st_size


def _read_index(path: Path) -> bytes:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_INDEX:
            raise FormatError(f"has {size:,} bytes; an index of weights has less than {LARGEST_INDEX >> 20} MB")
        data = file.read(LARGEST_INDEX)
    if len(data) < FOOTER or not data.endswith(MAGIC):
        raise FormatError("not the index of a TensorFlow checkpoint, or cut off; fetch it anew")
    return data


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The table's rows, whose keys ascend."""
    footer = data[-FOOTER:]
    _, place = _handle(footer, 0)  # of a table about the table, which is empty
    (offset, size), _ = _handle(footer, place)
    last: bytes | None = None
    count = end = 0
    for _, value in _rows(_block(data, offset, size)):
        (offset, size), _ = _handle(value, 0)
        if offset < end:  # or one block would do for many
            raise FormatError("damaged: its blocks stand out of order; fetch it anew")
        end = offset + size + TRAILER
        count += 1
        for key, held in _rows(_block(data, offset, size)):
            count += 1
            if count > MOST_ENTRIES:
                raise FormatError(f"claims over {MOST_ENTRIES:,} tensors; no model has so many")
            if last is not None and key <= last:
                raise FormatError(f"{_short(_text(key))} stands out of order; fetch the file anew")
            last = key
            yield key, held


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and where the next thing begins."""
    offset, place = _varint(data, place)
    size, place = _varint(data, place)
    return (offset, size), place


def _block(data: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + TRAILER > len(data) - FOOTER:
        raise FormatError("damaged: a block of it would lie behind its end; fetch it anew")
    kind, found = struct.unpack("<BI", data[end : end + TRAILER])
    if _masked(crc32c(data[offset : end + 1])) != found:
        raise FormatError("has changed since it was written (crc32c of a block); fetch it anew")
    if kind:
        raise FormatError("its index is compressed, as TensorFlow's own never is; save it with TensorFlow anew")
    return data[offset:end]


def _rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A block's keys and values. A key is given as how much of the one before it begins with, and the rest."""
    if len(block) < 4:
        raise FormatError("damaged: a block of it is too short; fetch it anew")
    (restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise FormatError("damaged: a block of it claims more restarts than it has; fetch it anew")
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        more, place = _varint(block, place)
        size, place = _varint(block, place)
        if shared > len(key) or shared + more > LONGEST_NAME or size > LONGEST_VALUE:
            raise FormatError("damaged: a name or value in it is longer than can be; fetch it anew")
        if place + more + size > end:
            raise FormatError("damaged: a name or value reaches out of its block; fetch it anew")
        key = key[:shared] + block[place : place + more]
        place += more
        yield key, block[place : place + size]
        place += size


def _entry(name: str, value: bytes) -> Entry:
    fields = _fields(value)
    shape = _shape(_bytes(fields, 2))
    if any(number == 7 for number, _ in fields):
        raise FormatError(f"{_short(name)} is saved in slices; load it in TensorFlow and save it whole")
    return Entry(_whole(fields, 1), shape, _whole(fields, 3), _whole(fields, 4), _whole(fields, 5), _whole(fields, 6))


def _shape(value: bytes) -> tuple[int, ...]:
    fields = _fields(value)
    if _whole(fields, 3):
        raise FormatError("has a tensor of unknown shape")
    return tuple(_whole(_fields(_bytes([each], 2)), 1) for each in fields if each[0] == 2)


def _check_place(name: str, entry: Entry, sizes: list[int]) -> None:
    if not 0 <= entry.shard < len(sizes):
        raise FormatError(f"{_short(name)} should be in data file {entry.shard}; there are {len(sizes)}")
    if len(entry.shape) > 8 or not all(0 <= each < 2**31 for each in entry.shape):
        raise FormatError(f"{_short(name)} claims the shape {str(entry.shape)[:60]}")
    if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > sizes[entry.shard]:
        raise FormatError(
            f"{_short(name)} claims {entry.size:,} bytes from {entry.offset:,} on, and its data file has "
            f"{sizes[entry.shard]:,}; fetch it anew"
        )
    if entry.dtype in DTYPES and math.prod(entry.shape) * DTYPES[entry.dtype].itemsize != entry.size:
        raise FormatError(f"{_short(name)} has {entry.size:,} bytes, which do not make the shape {entry.shape}")


def _check_apart(entries: dict[str, Entry]) -> None:
    laid = sorted((each.shard, each.offset, each.size, name) for name, each in entries.items() if each.size)
    for (shard, offset, size, name), (next_shard, next_offset, _, other) in pairwise(laid):
        if shard == next_shard and offset + size > next_offset:
            raise FormatError(f"{_short(name)} and {_short(other)} lie over each other")


def _fields(message: bytes) -> Fields:
    """A protocol buffer's fields: numbers as they are, anything longer as bytes."""
    fields: Fields = []
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        value: int | bytes
        if tag & 7 == 0:
            value, place = _varint(message, place)
        elif tag & 7 in (1, 2, 5):
            size = {1: 8, 5: 4}.get(tag & 7)
            if size is None:
                size, place = _varint(message, place)
            if place + size > len(message):
                raise FormatError("damaged: an entry of it is cut off; fetch it anew")
            value = message[place : place + size]
            place += size
            value = value if tag & 7 == 2 else int.from_bytes(value, "little")
        else:
            raise FormatError("damaged: an entry of it is no protocol buffer; fetch it anew")
        fields.append((tag >> 3, value))
    return fields


def _whole(fields: Fields, number: int) -> int:
    """A whole number, the last one given; negative where its highest bit says so."""
    value = next((value for each, value in reversed(fields) if each == number), 0)
    if isinstance(value, bytes):
        raise FormatError("damaged: an entry of it has bytes in place of a number; fetch it anew")
    return value - 2**64 if value >= 2**63 else value


def _bytes(fields: Fields, number: int) -> bytes:
    value = next((value for each, value in reversed(fields) if each == number), b"")
    if isinstance(value, int):
        raise FormatError("damaged: an entry of it has a number in place of bytes; fetch it anew")
    return value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, and where the next thing begins."""
    value = shift = 0
    while shift < 70:
        if place >= len(data):
            raise FormatError("damaged: it ends within a number; fetch it anew")
        value |= (data[place] & 0x7F) << shift
        shift += 7
        place += 1
        if data[place - 1] < 0x80:
            break
    if value >= 2**64 or data[place - 1] >= 0x80:
        raise FormatError("damaged: a number in it is too large; fetch it anew")
    return value, place


def _text(name: bytes) -> str:
    return name.decode("utf-8", errors="backslashreplace")


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:57] + "...")


def _masked(sum: int) -> int:
    """How a sum is stored, so that sums of data with sums in it stay good."""
    return (((sum >> 15) | (sum << 17)) + 0xA282EAD8) & 0xFFFFFFFF

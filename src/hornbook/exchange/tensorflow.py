"""TensorFlow's checkpoints, as OpenAI published GPT-2 in, without TensorFlow.

In: a folder, or PREFIX of `PREFIX.index` and `PREFIX.data-00000-of-00001` (or several).  Out: tensors by name, each
read, and its sum checked, when it is asked for.
The index is a sorted table: blocks of names, each written as what differs from the name before, with a table of blocks
behind them and the place of that at the very end. A name's value says where in the data files its numbers are. Each
block and each tensor has a CRC-32C. Nothing that the index claims is believed before it is seen to lie in the files.
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import google_crc32c
import torch

from hornbook.base.errors import UserError
from hornbook.exchange.refusal import FormatError, naming, open_file

FOOTER = 48
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
TRAILER = 5  # behind a block: how it is compressed, and its sum
LARGEST_INDEX = 64 << 20
MOST_ENTRIES = 50_000
LONGEST_NAME = 1000
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
Fields = list[tuple[int, Any]]


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
            with open_file(path) as file:
                file.seek(entry.offset)
                data = file.read(entry.size)
            if _masked_sum(data) != entry.sum:
                raise FormatError(f"{_short(name)} has changed since it was written (crc32c); fetch the file anew")
            if not data:
                return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
            return torch.frombuffer(bytearray(data), dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, or of a prefix."""
    index = _index_of(path)
    with naming(index), _damage_named():
        data = _read_index(index)
        table = dict(_table(data))
        header = _fields(table.pop(b"", b""))
        count = _last(header, 1)
        if not 0 < count <= MOST_SHARDS:
            raise FormatError(f"claims {count} data files; is it a TensorFlow checkpoint?")
        if _last(header, 2):
            raise FormatError("was written on a big-endian machine; load it in TensorFlow and save it on another")
        prefix = index.name.removesuffix(".index")
        shards = [index.with_name(f"{prefix}.data-{shard:05}-of-{count:05}") for shard in range(count)]
        sizes = [_size_of(shard) for shard in shards]
        entries = {_text(name): _entry(_text(name), value, sizes) for name, value in table.items()}
        _check_apart(entries)
    return Checkpoint(shards, entries)


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    """Whatever is read where nothing is, or is of another kind than it should be."""
    try:
        yield
    except (IndexError, ValueError, TypeError, struct.error):
        raise FormatError("damaged, or not the index of a TensorFlow checkpoint; fetch it anew") from None


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
    if not shard.is_file():
        raise FormatError(f"{shard.name} beside it is missing, or is not a file; fetch all files of the checkpoint")
    return shard.stat().st_size


def _read_index(path: Path) -> bytes:
    with open_file(path) as file:
        data = file.read(LARGEST_INDEX + 1)
    if len(data) > LARGEST_INDEX:
        raise FormatError(f"too large: an index of weights has less than {LARGEST_INDEX >> 20} MB")
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
    kind, found = struct.unpack("<BI", data[end : end + TRAILER])
    if _masked_sum(data[offset : end + 1]) != found:
        raise FormatError("has changed since it was written (crc32c of a block); fetch it anew")
    if kind:
        raise FormatError("its index is compressed, as TensorFlow's own never is; save it with TensorFlow anew")
    return data[offset:end]


def _rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A block's keys and values. A key is given as how much of the one before it begins with, and the rest."""
    (restarts,) = struct.unpack("<I", block[-4:])
    place, end, key = 0, len(block) - 4 - 4 * restarts, b""
    if end < 0:
        raise ValueError
    while place < end:
        shared, place = _varint(block, place)
        more, place = _varint(block, place)
        size, place = _varint(block, place)
        if shared > len(key) or shared + more > LONGEST_NAME or place + more + size > end:
            raise ValueError
        key = key[:shared] + block[place : place + more]
        place += more + size
        yield key, block[place - size : place]


def _entry(name: str, value: bytes, sizes: list[int]) -> Entry:
    """Where a tensor's numbers are, which is seen to lie in the data files."""
    fields = _fields(value)
    shape_fields = _fields(_last(fields, 2, b""))
    if any(number == 7 for number, _ in fields):
        raise FormatError(f"{_short(name)} is saved in slices; load it in TensorFlow and save it whole")
    if _last(shape_fields, 3):
        raise FormatError(f"{_short(name)} has no known shape")
    shape = tuple(_last(_fields(each), 1) for number, each in shape_fields if number == 2)
    dtype, shard, offset, size, crc = (_last(fields, number) for number in (1, 3, 4, 5, 6))
    if not 0 <= shard < len(sizes):
        raise FormatError(f"{_short(name)} should be in data file {shard}; there are {len(sizes)}")
    if len(shape) > 8 or not all(0 <= each < 2**31 for each in shape):
        raise FormatError(f"{_short(name)} claims the shape {str(shape)[:60]}")
    if offset < 0 or size < 0 or offset + size > sizes[shard]:
        claimed = f"{_short(name)} claims {size:,} bytes from {offset:,} on"
        raise FormatError(f"{claimed}, and its data file has {sizes[shard]:,}; fetch it anew")
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != size:
        raise FormatError(f"{_short(name)} has {size:,} bytes, which do not make the shape {shape}")
    return Entry(dtype, shape, shard, offset, size, crc)


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
        if tag & 7 == 0:
            value, place = _varint(message, place)
            fields.append((tag >> 3, value - 2**64 if value >= 2**63 else value))
            continue
        size = {1: 8, 5: 4}.get(tag & 7)
        if size is None:
            if tag & 7 != 2:
                raise ValueError
            size, place = _varint(message, place)
        held = message[place : place + size]
        if len(held) != size:
            raise ValueError
        place += size
        fields.append((tag >> 3, held if tag & 7 == 2 else int.from_bytes(held, "little")))
    return fields


def _last(fields: Fields, number: int, otherwise: Any = 0) -> Any:
    """The value of a field, the last one given, of the kind that it should be."""
    value = next((value for each, value in reversed(fields) if each == number), otherwise)
    if type(value) is not type(otherwise):
        raise ValueError
    return value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, and where the next thing begins."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[place] & 0x7F) << shift
        place += 1
        if data[place - 1] < 0x80:
            break
    if value >= 2**64 or data[place - 1] >= 0x80:
        raise ValueError
    return value, place


def _text(name: bytes) -> str:
    return name.decode("utf-8", errors="backslashreplace")


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:57] + "...")


def _masked_sum(data: bytes) -> int:
    """CRC-32C as it is stored, so that sums of data with sums in it stay good."""
    sum = google_crc32c.value(data)
    return (((sum >> 15) | (sum << 17)) + 0xA282EAD8) & 0xFFFFFFFF

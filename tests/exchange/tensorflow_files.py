"""TensorFlow's checkpoint format, written from its description: tensor_bundle.proto, and LevelDB's table format."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "int64": 9, "float16": 19}
MAGIC = bytes.fromhex("57fb808b247547db")
_TABLE = [0] * 256
for _byte in range(256):
    _value = _byte
    for _ in range(8):
        _value = _value >> 1 ^ (0x82F63B78 if _value & 1 else 0)
    _TABLE[_byte] = _value


def masked_sum(data: bytes) -> bytes:
    state = 0xFFFFFFFF
    for byte in data:
        state = _TABLE[(state ^ byte) & 255] ^ state >> 8
    state ^= 0xFFFFFFFF
    rotated = (state >> 15 | state << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def shape(sizes: tuple[int, ...]) -> bytes:
    return b"".join(message(2, number(1, size)) for size in sizes)


def entry(
    kind: int, sizes: tuple[int, ...], offset: int, size: int, sum: bytes, shard: int = 0, more: bytes = b""
) -> bytes:
    place = number(3, shard) + number(4, offset) + number(5, size)
    return number(1, kind) + message(2, shape(sizes)) + place + varint(6 << 3 | 5) + sum + more


def header(shards: int = 1, endianness: int = 0) -> bytes:
    return number(1, shards) + number(2, endianness) + message(3, number(1, 1))


def block(rows: list[tuple[bytes, bytes]], interval: int = 16) -> bytes:
    """Every sixteenth key is written whole, and its place noted at the end."""
    data, last, restarts = b"", b"", []
    for place, (key, value) in enumerate(rows):
        shared = 0
        if place % interval == 0:
            restarts.append(len(data))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        data += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return data + b"".join(struct.pack("<I", each) for each in [*restarts, len(restarts)])


def sealed(data: bytes, kind: int = 0) -> bytes:
    return data + bytes([kind]) + masked_sum(data + bytes([kind]))


def table(rows: list[tuple[bytes, bytes]], in_a_block: int = 5, kind: int = 0) -> bytes:
    blocks = [rows[place : place + in_a_block] for place in range(0, len(rows), in_a_block)]
    return table_of_blocks([(each[-1][0], block(each)) for each in blocks], kind)


def table_of_blocks(blocks: list[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    file, index = b"", []
    for key, data in blocks:
        index.append((key, varint(len(file)) + varint(len(data))))
        file += sealed(data, kind)
    about = varint(len(file)) + varint(len(block([])))
    file += sealed(block([]))
    where = varint(len(file)) + varint(len(block(index, 1)))
    file += sealed(block(index, 1))
    return file + (about + where).ljust(40, b"\0") + MAGIC


def rows_and_data(tensors: Mapping[str, Any], shards: int = 1) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    held, rows = [b""] * shards, [(b"", header(shards))]
    for turn, (name, value) in enumerate(sorted(tensors.items())):
        data, shard = np.ascontiguousarray(value).tobytes(), turn % shards
        kind = KINDS[value.dtype.name]
        rows.append((name.encode(), entry(kind, value.shape, len(held[shard]), len(data), masked_sum(data), shard)))
        held[shard] += data
    return rows, held


def write(prefix: Path, index: bytes, shards: list[bytes]) -> None:
    prefix.with_name(prefix.name + ".index").write_bytes(index)
    for shard, data in enumerate(shards):
        prefix.with_name(f"{prefix.name}.data-{shard:05}-of-{len(shards):05}").write_bytes(data)

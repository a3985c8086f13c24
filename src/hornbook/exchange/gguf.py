"""GGUF, the file that llama.cpp and what is built on it open.

In: notes by key, and tensors by name, each made when its turn comes.  Out: one file, and both back from it.
The file is a header (counts, then keys with typed values, then each tensor's name, sizes from the innermost axis on,
kind and place), and the tensors' bytes, each at a multiple of the alignment. All numbers are little-endian. A reader
is told lengths before anything else, and believes none that does not fit into the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hornbook.base.errors import UserError
from hornbook.base.unfinished import BinaryWriter
from hornbook.exchange.refusal import FormatError, naming, open_file

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"
LARGEST_HEADER = 16 << 20
LONGEST_NAME = 64
BLOCK = 32  # weights that share a scale in Q8_0
BLOCK_BYTES = 2 + BLOCK
WEIGHTS_AT_ONCE = 1 << 22

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
BOOL, TEXT, ARRAY = 7, 8, 9
UINT32, INT32, FLOAT32 = 4, 5, 6
KINDS = {"F32": 0, "F16": 1, "Q8_0": 8, "BF16": 30}
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What rounds to more than the kind can hold; not a number is above all of them.
LARGEST = {"F32": math.inf, "F16": 65520.0, "Q8_0": 127 * 65504.0, "BF16": 3.39e38}
Value = str | bool | int | float | Sequence[str] | Sequence[int]


@dataclass(frozen=True)
class Tensor:
    """One to write, in one of KINDS."""

    name: str
    shape: tuple[int, ...]
    kind: str
    make: Callable[[], torch.Tensor]

    @property
    def size(self) -> int:
        return _bytes_of(self.shape, self.kind)


@dataclass(frozen=True)
class _Place:
    shape: tuple[int, ...]
    kind: str
    offset: int
    size: int


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> None:
    """Into a staged file; only one tensor at a time is in memory."""
    header = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _packed_text(key) + _packed(value)
    offset = 0
    for tensor in tensors:
        sizes = tensor.shape[::-1]
        header += _packed_text(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        header += struct.pack("<IQ", KINDS[tensor.kind], offset)
        offset += tensor.size + -tensor.size % ALIGNMENT
    writer = BinaryWriter(path)
    try:
        writer.write(bytes(header) + bytes(-len(header) % ALIGNMENT))
        for tensor in tensors:
            begin = writer.bytes_written
            for piece in _encoded(tensor):
                writer.write(piece)
            writer.write(bytes(-(writer.bytes_written - begin) % ALIGNMENT))
        writer.close()
    except BaseException:
        writer.abandon()
        raise


def _packed_text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _packed(value: Value) -> bytes:
    """A value after its type."""
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + _packed_text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    numbers = [each for each in value if isinstance(each, int)]
    if numbers:
        return struct.pack(f"<IIQ{len(numbers)}i", ARRAY, INT32, len(value), *numbers)
    texts = [each for each in value if isinstance(each, str)]
    return struct.pack("<IIQ", ARRAY, TEXT, len(texts)) + b"".join(map(_packed_text, texts))


def _encoded(tensor: Tensor) -> Iterator[memoryview]:
    whole = tensor.make().detach().reshape(-1)
    if whole.numel() != math.prod(tensor.shape):
        raise ValueError(f"{tensor.name} has {whole.numel()} numbers, not the shape {tensor.shape}")
    for begin in range(0, whole.numel(), WEIGHTS_AT_ONCE):
        piece = whole[begin : begin + WEIGHTS_AT_ONCE]
        largest = float(piece.abs().max())
        if not largest < LARGEST[tensor.kind]:
            raise UserError(f"tensor {tensor.name} holds {largest:.3g}, which {tensor.kind} cannot hold; export as f32")
        stored = _quantized(piece) if tensor.kind == "Q8_0" else piece.to(PLAIN[tensor.kind])
        yield stored.contiguous().view(torch.uint8).reshape(-1).numpy().data


def _quantized(piece: torch.Tensor) -> torch.Tensor:
    """Blocks of 32 weights as a scale and 32 whole numbers, rounded as ggml does: halves away from zero."""
    blocks = piece.float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True) / 127
    inverse = torch.where(scales < 1e-30, 0.0, 1 / scales)  # such a scale is stored as 0
    scaled = blocks * inverse
    whole = (scaled.abs() + 0.5).floor() * scaled.sign()
    return torch.cat([scales.half().view(torch.uint8), whole.to(torch.int8).view(torch.uint8)], 1)


def _dequantized(data: bytearray) -> torch.Tensor:
    blocks = torch.frombuffer(data, dtype=torch.uint8).reshape(-1, BLOCK_BYTES)
    scales = blocks[:, :2].contiguous().view(torch.float16).float()
    return blocks[:, 2:].contiguous().view(torch.int8).float() * scales


def _bytes_of(shape: tuple[int, ...], kind: str) -> int:
    count = math.prod(shape)
    return count // BLOCK * BLOCK_BYTES if kind == "Q8_0" else count * PLAIN[kind].itemsize


class Tensors(Mapping[str, torch.Tensor]):
    """A file's tensors by name; one is read anew each time that it is asked for, Q8_0 as float32."""

    def __init__(self, path: Path, places: dict[str, _Place]) -> None:
        self._path = path
        self._places = places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> torch.Tensor:
        place = self._places[name]
        data = bytearray(place.size)
        with naming(self._path), open_file(self._path) as file:
            file.seek(place.offset)
            if file.readinto(data) != place.size:
                raise FormatError("was cut off since it was opened")
        if place.kind == "Q8_0":
            return _dequantized(data).reshape(place.shape)
        return torch.frombuffer(data, dtype=PLAIN[place.kind]).reshape(place.shape)

    def kind(self, name: str) -> str:
        return self._places[name].kind


def read_gguf(path: Path) -> tuple[dict[str, Any], Tensors]:
    """A file's notes, and its tensors."""
    with naming(path):
        with open_file(path) as file:
            data = file.read(LARGEST_HEADER)
            size = file.seek(0, 2)
        header = _Header(data, size)
        if header.take(4) != MAGIC:
            raise FormatError("not a GGUF file")
        version = header.number("I")
        if version != VERSION:
            raise FormatError(f"GGUF of version {version}; only {VERSION}, little-endian, is read")
        tensors, keys = header.count(24), header.count(13)
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = header.text()
            if key in metadata:
                raise FormatError(f"key {key[:60]!r} is there twice")
            metadata[key] = header.value(header.number("I"))
        places = header.places(tensors)
        alignment = metadata.get(ALIGNMENT_KEY, ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise FormatError(f"{ALIGNMENT_KEY} is {str(alignment)[:20]}, not a power of two from 8 on")
        begin = header.place + -header.place % alignment
        return metadata, Tensors(path, _laid_out(places, begin, alignment, size))


def _laid_out(places: dict[str, _Place], begin: int, alignment: int, size: int) -> dict[str, _Place]:
    laid = {}
    for name, place in places.items():
        if place.offset % alignment:
            raise FormatError(f"tensor {name!r} begins at {place.offset:,}, not at a multiple of {alignment}")
        if begin + place.offset + place.size > size:
            raise FormatError(f"tensor {name!r} reaches behind the end of the file; write or fetch it anew")
        laid[name] = _Place(place.shape, place.kind, begin + place.offset, place.size)
    ordered = sorted((place.offset, place.size, name) for name, place in laid.items())
    for (offset, length, name), (following, _, other) in pairwise(ordered):
        if offset + length > following:
            raise FormatError(f"tensors {name!r} and {other!r} lie over each other")
    return laid


class _Header:
    """The header's bytes, taken one thing after the other."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data
        self._size = size
        self.place = 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self.place:
            whole = "cut off, or claims more than it has" if len(self._data) == self._size else "has too long a header"
            raise FormatError(f"{whole}; write or fetch it anew")
        self.place += count
        return self._data[self.place - count : self.place]

    def number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]

    def count(self, least: int) -> int:
        """How many things follow, of which each takes so many bytes at least."""
        count = int(self.number("Q"))
        if count * least > len(self._data) - self.place:
            raise FormatError(f"claims {count:,} entries, more than it has room for; write or fetch it anew")
        return count

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError:
            raise FormatError("holds a text that is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == ARRAY:
            return self.array()
        if kind == TEXT:
            return self.text()
        if kind == BOOL:
            return self.flags(1)[0]
        if kind not in NUMBERS:
            raise FormatError(f"holds a value of unknown type {kind}")
        return self.number(NUMBERS[kind])

    def flags(self, count: int) -> list[bool]:
        data = self.take(count)
        if max(data, default=0) > 1:
            raise FormatError("holds a truth value that is neither 0 nor 1")
        return [bool(each) for each in data]

    def array(self) -> list[Any]:
        kind = self.number("I")
        if kind == TEXT:
            return [self.text() for _ in range(self.count(8))]
        if kind == BOOL:
            return self.flags(self.count(1))
        if kind not in NUMBERS:
            raise FormatError(f"holds an array of type {kind}, or of arrays, which no model needs")
        numbers = np.dtype(f"<{NUMBERS[kind]}")
        count = self.count(numbers.itemsize)
        return list(np.frombuffer(self.take(count * numbers.itemsize), numbers).tolist())

    def places(self, count: int) -> dict[str, _Place]:
        """Name, shape, kind and offset of each tensor."""
        kinds = {number: kind for kind, number in KINDS.items()}
        places: dict[str, _Place] = {}
        for _ in range(count):
            name = self.text()
            if not 0 < len(name.encode()) < LONGEST_NAME or name in places:
                raise FormatError(f"tensor name {name[:60]!r} is empty, too long, or there twice")
            axes = self.number("I")
            if not 1 <= axes <= 4:
                raise FormatError(f"tensor {name!r} claims {axes:,} axes; ggml has up to 4")
            shape = tuple(self.number("Q") for _ in range(axes))[::-1]
            kind, offset = self.number("I"), self.number("Q")
            if kind not in kinds:
                raise FormatError(f"tensor {name!r} is of kind {kind}; read are {', '.join(KINDS)}")
            if not all(shape) or (kinds[kind] == "Q8_0" and shape[-1] % BLOCK):
                raise FormatError(f"tensor {name!r} claims the shape {str(shape)[:60]}")
            places[name] = _Place(shape, kinds[kind], offset, _bytes_of(shape, kinds[kind]))
        return places

"""Other people's .pt, .pth and .bin files, without letting them run anything.

In: a file that torch.save wrote, as a zip (since PyTorch 1.6) or as a row of pickles (before).  Out: what it holds,
and the model's weights in that.
A pickle is a program. torch.load with weights_only runs few of its instructions, but among those are some that fill
the memory, and with a memory map it believes any size. So the container and the program are read first, without
running them: what they name must be what weights are made of, and what they claim must lie in the file.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import torch

from hornbook.exchange.refusal import FormatError, naming, open_file

LARGEST_PROGRAM = 64 << 20
MOST_STEPS = 500_000
MOST_MEMBERS = 100_000
BLOCK = 1 << 20
HOLDERS = ("model", "model_state_dict", "state_dict", "model_state")
PREFIXES = ("_orig_mod.", "module.")  # of torch.compile, and of training on several devices

STORAGES = {
    **{"DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8},
    **{"IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1},
}
# What weights, optimizer states and settings are made of. Of what weights_only allows, bytearray, torch.Tensor and
# others are left out: called with a number, they take that much memory.
HARMLESS = {
    *(f"torch {name}" for name in STORAGES),
    *(f"torch {name}" for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8")),
    *("torch uint8", "torch bool", "torch Size", "torch device"),
    *(f"torch._utils _rebuild_{name}" for name in ("tensor", "tensor_v2", "parameter")),
    *("collections OrderedDict", "builtins set", "__builtin__ set"),
    "torch.torch_version TorchVersion",  # a text
}
# With these a row of pickles begins: a number and a version, each a pickle of its own.
BEFORE_ZIP = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."


@dataclass
class _Claims:
    """What a pickle would do if it ran."""

    storages: dict[str, int] = field(default_factory=dict)
    """Bytes of each storage that tensors are laid over."""
    texts: list[str] = field(default_factory=list)


def read_torch(path: Path) -> dict[Any, Any]:
    """What a file holds, its tensors on the CPU and read as they are needed where the file is a zip."""
    with naming(path):
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            begin = file.read(len(BEFORE_ZIP))
            is_zip = begin.startswith(b"PK\x03\x04")
            if is_zip:
                _check_zip(file, size)
            elif begin == BEFORE_ZIP:
                _check_row(file, size)
            else:
                raise FormatError(_name_of_other(begin, file))
        tree = _load(path, is_zip)
        if not isinstance(tree, dict):
            raise FormatError(f"holds one {type(tree).__name__}, not weights by name")
        _check_tensors(tree, size)
    return dict(tree)


def find_weights(tree: Mapping[Any, Any], path: Path) -> dict[str, torch.Tensor]:
    """The state dict in what a file holds, which is that or has it under a usual name. What compiling and spreading a
    model put before the names is taken off; `path` is for errors."""
    with naming(path):
        holders = [name for name in HOLDERS if isinstance(tree.get(name), Mapping)]
        if len(holders) > 1:
            raise FormatError(f"has weights under {' and '.join(holders)}; save the state_dict() that is meant alone")
        return _state_of(tree[holders[0]] if holders else tree)


def _state_of(state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        there = ", ".join(str(name)[:20] for name in list(state)[:5]) or "nothing"
        raise FormatError(f"no weights found in it, nor under {', '.join(HOLDERS)}; it holds {there}")
    weights: dict[str, torch.Tensor] = {}
    for given, value in state.items():
        if not isinstance(given, str) or not isinstance(value, torch.Tensor):
            what = type(value).__name__
            raise FormatError(f"{str(given)[:60]} holds {what}, not a tensor by name; save the state_dict() alone")
        name = given
        while prefix := next((each for each in PREFIXES if name.startswith(each)), ""):
            name = name.removeprefix(prefix)
        if name in weights:
            raise FormatError(f"tensor {name[:80]} is there twice, with and without a prefix; leave one out")
        weights[name] = value.detach()
    return weights


def _name_of_other(begin: bytes, file: IO[bytes]) -> str:
    """What a file is that torch.save did not write."""
    file.seek(257)
    if file.read(5) == b"ustar":
        return "a tar file, as before PyTorch 0.1.10; load it with a PyTorch of 2017 and save it anew"
    if begin[:1] == b"\x80":
        return "a bare pickle, which could run anything; where it was made: torch.save(model.state_dict(), FILE)"
    return "not a file that torch.save wrote" if begin else "is empty"


def _load(path: Path, is_zip: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals([torch.torch_version.TorchVersion]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # of which a damaged file can bring any
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FormatError(f"PyTorch cannot load it ({first[:90]}); fetch or save it anew") from None


def _check_tensors(tree: dict[Any, Any], size: int) -> None:
    """A tensor may be laid over a storage so that it repeats it, which costs nothing until somebody copies it."""
    sizes: dict[int, int] = {}
    for tensor in _tensors_in(tree):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise FormatError("holds a tensor that is not plain numbers (sparse, quantized or on no device)")
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise FormatError(f"a tensor of shape {tuple(tensor.shape)} claims more numbers than the file has for it")
        sizes[storage.data_ptr()] = storage.nbytes()
    if sum(sizes.values()) > size:
        raise FormatError(f"tensors claim {sum(sizes.values()):,} bytes, and the file has {size:,}")


def _tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    waiting, seen = [tree], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)


def _check_row(file: IO[bytes], size: int) -> None:
    """Before PyTorch 1.6: a number, a version, the machine, what was saved, the storages' keys, then their bytes."""
    file.seek(0)
    stream = io.BytesIO(file.read(LARGEST_PROGRAM))
    for _ in range(3):
        _look_through(stream)
    saved, keys = _look_through(stream), _look_through(stream)
    if sorted(keys.texts) != sorted(saved.storages):
        raise FormatError("damaged: its tensors and its list of storages differ")
    _check_total(saved, size)


def _check_total(claims: _Claims, size: int) -> None:
    if sum(claims.storages.values()) > size:
        raise FormatError(f"claims {sum(claims.storages.values()):,} bytes of tensors, and has {size:,}; fetch it anew")


def _check_zip(file: IO[bytes], size: int) -> None:
    """PyTorch stores members plainly, one after the other, in one folder."""
    count = _number_of_members(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) != count:
                raise FormatError("a damaged zip file: its two tables of contents differ")
            places = {member.filename: _place_of(member, file) for member in members}
            _check_places(members, places, size)
            for member in members:
                _check_sum(member, places[member.filename], file)
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OverflowError, EOFError) as error:
        raise FormatError(f"a damaged zip file ({str(error)[:60]}); fetch it anew") from None
    folder = members[0].filename.partition("/")[0]
    by_name = {member.filename: member.file_size for member in members}
    if f"{folder}/constants.pkl" in by_name:
        raise FormatError("a TorchScript program; where it was made: torch.save(model.state_dict(), FILE)")
    program = f"{folder}/data.pkl"
    if program not in by_name:
        raise FormatError("a zip file, but not one that torch.save wrote (it has no data.pkl)")
    if by_name[program] > LARGEST_PROGRAM:
        raise FormatError(f"data.pkl has {by_name[program]:,} bytes; save the state_dict() alone")
    file.seek(places[program])
    claims = _look_through(io.BytesIO(file.read(by_name[program])))
    for key, claimed in claims.storages.items():
        held = by_name.get(f"{folder}/data/{key}")
        if held != claimed:
            raise FormatError(f"storage {key[:20]} claims {claimed:,} bytes, and the file has {held or 0:,} for it")


def _number_of_members(file: IO[bytes], size: int) -> int:
    """From the very end of the file, so that no larger table is read than a file of weights can have."""
    file.seek(max(size - 22 - 20, 0))
    tail = file.read()
    end, locator = tail[-22:], tail[:-22]
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise FormatError("a zip file that was cut off, or has something after its end; fetch it anew")
    count, table = struct.unpack("<10xHI6x", end)
    if len(locator) == 20 and locator[:4] == b"PK\x06\x07":
        (place,) = struct.unpack("<8xQ4x", locator)
        if place > size - 22 - 20 - 56:
            raise FormatError("a damaged zip file: its table of contents lies outside of it")
        file.seek(place)
        count, table = struct.unpack("<4x28xQQ8x", file.read(56))
    if not 0 < count <= MOST_MEMBERS or table > min(size, 1000 * count):
        raise FormatError(f"a zip file with a table of {count:,} members in {table:,} bytes, which no weights need")
    return int(count)


def _place_of(member: zipfile.ZipInfo, file: IO[bytes]) -> int:
    """Where a member's bytes begin, by its own header."""
    file.seek(member.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise FormatError("a damaged zip file: a member is not where the table of contents says")
    name, extra = struct.unpack("<26xHH", header)
    return int(member.header_offset + 30 + name + extra)


def _check_places(members: list[zipfile.ZipInfo], places: dict[str, int], size: int) -> None:
    if len(places) < len(members):
        raise FormatError("a zip file with two members of one name")
    for member in members:
        name, short = member.filename, member.filename[:40]
        if "\\" in name or name.startswith("/") or ".." in name.split("/"):
            raise FormatError(f"a zip member is named {short}, outside of the archive; torch.save names none so")
        if name.partition("/")[0] != members[0].filename.partition("/")[0]:
            raise FormatError(f"a zip member {short} lies in another folder than the first; torch.save uses one")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise FormatError(f"zip member {short} is compressed or encrypted, which torch.save never does")
        if member.file_size != member.compress_size or places[name] + member.file_size > size:
            raise FormatError(f"zip member {short} claims {member.file_size:,} bytes, more than the file has")
    spans = sorted((each.header_offset, places[each.filename] + each.file_size) for each in members)
    if any(end > begin for (_, end), (begin, _) in pairwise(spans)):
        raise FormatError("zip members lie over each other")


def _check_sum(member: zipfile.ZipInfo, place: int, file: IO[bytes]) -> None:
    file.seek(place)
    left, found = member.file_size, 0
    while left:
        block = file.read(min(left, BLOCK))
        if not block:
            raise FormatError("was cut off while it was read")
        found, left = zlib.crc32(block, found), left - len(block)
    if found != member.CRC:
        raise FormatError(f"{member.filename[:40]} in it has changed since it was written (crc32); fetch it anew")


def _look_through(stream: IO[bytes]) -> _Claims:
    """Read one pickle's instructions without following them."""
    claims = _Claims()
    memo: dict[int, Any] = {}
    since_mark: list[Any] = []  # texts, numbers and names put on the stack since the last mark
    built: list[Any] = []
    last: Any = None
    steps = 0
    with _unsound_where_malformed():
        for opcode, argument, _ in pickletools.genops(stream):
            steps += 1
            if steps > MOST_STEPS:
                raise FormatError(f"has over {MOST_STEPS:,} parts beside its tensors; save the state_dict() alone")
            name, place = opcode.name, argument if isinstance(argument, int) else 0
            if name == "MARK":
                since_mark = []
            elif name == "TUPLE":
                last = built = since_mark
                since_mark = []
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[place] = last
            elif name == "BINPERSID":
                key, size = _storage_of(built)
                if claims.storages.setdefault(key, size) != size:
                    raise FormatError(f"storage {key[:20]} is given two sizes")
            elif name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
                raise FormatError(f"has an instruction ({name}) that weights do not need; save the state_dict() alone")
            else:
                last = memo.get(place) if name in ("BINGET", "LONG_BINGET") else argument
                built = last if isinstance(last, list) else built
                if name == "GLOBAL" and last not in HARMLESS:
                    what = str(last).replace(" ", ".")[:60]
                    raise FormatError(
                        f"holds more than weights ({what}); where it was made: torch.save(model.state_dict(), FILE)"
                    )
                if isinstance(last, str) and name != "GLOBAL":
                    claims.texts.append(last)
                since_mark.append(last)
    return claims


@contextlib.contextmanager
def _unsound_where_malformed() -> Iterator[None]:
    try:
        yield
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise FormatError(f"its pickle is damaged ({str(error)[:60]}); fetch it anew") from None


def _storage_of(parts: list[Any]) -> tuple[str, int]:
    """The key and the bytes of a storage, from how torch.save refers to it."""
    kind, key, numbers = (parts[1], parts[2], parts[4]) if len(parts) in (5, 6) else ("", "", -1)
    unit = STORAGES.get(str(kind).removeprefix("torch "), 0)
    whole = parts[5:] in ([], [None])  # a view of another storage, which files of 2017 have, is not
    if not (unit and parts[0] == "storage" and isinstance(key, str) and whole):
        raise FormatError("refers to a tensor's numbers in a way that torch.save does not")
    if not isinstance(numbers, int) or numbers < 0:
        raise FormatError(f"storage {key[:20]} claims {str(numbers)[:20]} numbers")
    return key, numbers * unit

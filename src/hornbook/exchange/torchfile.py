"""Other people's .pt, .pth and .bin files, without letting them run anything.

In: a file that torch.save wrote, as a zip (since PyTorch 1.6) or as a row of pickles (before).  Out: what it holds,
and the model's weights in that.
A pickle is a program. torch.load with weights_only calls few functions, but among those are some that fill the memory.
So what it names is looked at first, without running it; and whether the bytes are those that were written, and whether
tensors claim more than the file has, which a memory map believes.
"""

from __future__ import annotations

import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from hornbook.exchange.refusal import FormatError, naming, open_file

HOLDERS = ("model", "model_state_dict", "state_dict", "model_state")
PREFIXES = ("_orig_mod.", "module.")  # of torch.compile, and of training on several devices
# What weights, optimizer states and settings are made of. Of what weights_only allows, bytearray, torch.Tensor and
# others are left out: called with a number, they take that much memory.
HARMLESS = re.compile(
    r"torch (\w+Storage|float\d+|bfloat16|int\d+|uint8|bool|Size|device)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|collections OrderedDict|(builtins|__builtin__) set|torch\.torch_version TorchVersion"
)
PICKLES_IN_A_ROW = 5  # a number, a version, the machine, what was saved, the storages' keys; then their bytes
# With these a row of pickles begins: a number and a version, each a pickle of its own.
BEFORE_ZIP = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."


def read_torch(path: Path) -> dict[Any, Any]:
    """What a file holds, its tensors on the CPU and read as they are needed where the file is a zip."""
    with naming(path):
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            begin = file.read(len(BEFORE_ZIP))
            is_zip = begin.startswith(b"PK\x03\x04")
            if is_zip:
                _check_zip(file)
            elif begin == BEFORE_ZIP:
                file.seek(0)
                for _ in range(PICKLES_IN_A_ROW):
                    _check_program(file)
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


def _check_zip(file: IO[bytes]) -> None:
    """torch.load takes numbers through a memory map, and looks at no sums."""
    try:
        with zipfile.ZipFile(file) as archive:
            if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                raise FormatError("a zip file that is compressed, which torch.save never does")
            changed = archive.testzip()
            for each in archive.namelist():
                if each.endswith("/data.pkl"):
                    with archive.open(each) as program:
                        _check_program(program)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError, OverflowError, EOFError) as error:
        raise FormatError(f"a damaged zip file ({str(error)[:60]}); fetch it anew") from None
    if changed is not None:
        raise FormatError(f"{changed[:40]} in it has changed since it was written (crc32); fetch it anew")


def _check_program(program: IO[bytes]) -> None:
    """Read a pickle's instructions without following them."""
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "GLOBAL" and not HARMLESS.fullmatch(str(argument)):
                what = f"holds more than weights ({str(argument).replace(' ', '.')[:60]})"
                raise FormatError(f"{what}; where it was made: torch.save(model.state_dict(), FILE)")
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise FormatError(f"its pickle is damaged ({str(error)[:60]}); fetch it anew") from None


def _load(path: Path, is_zip: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals([torch.torch_version.TorchVersion]):  # a text
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

"""Files of torch.save are read as they are, and what only looks like one does no harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from refusing import flips, most_memory, refused

from hornbook.base.errors import UserError
from hornbook.exchange.torchfile import BEFORE_ZIP, find_weights, read_torch

FOUR = struct.pack("<4f", 1, 2, 3, 4)
legacy_too = pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "pickles"])


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def storage(numbers: int = 4, key: str = "0", kind: str = "FloatStorage", more: bytes = b"") -> bytes:
    return (
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(numbers) + more + b"tQ"
    )


def tensor(
    size: tuple[int, ...] = (2, 2), stride: tuple[int, ...] = (2, 1), offset: int = 0, over: bytes = storage()
) -> bytes:
    """The instructions that torch.save writes for a tensor."""
    sizes, strides = (b"(" + b"".join(map(number, each)) + b"t" for each in (size, stride))
    laid = over + number(offset) + sizes + strides + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + laid + b"tR"


def program(**parts: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + part for name, part in parts.items()) + b"u."


def called(name: str, argument: bytes) -> bytes:
    return b"c" + name.replace(".", "\n").encode() + b"\n(" + argument + b"tR"


def archive(instructions: bytes, members: dict[str, bytes] | None = None, **knobs: Any) -> bytes:
    """A zip file as torch.save lays it out."""
    held = io.BytesIO()
    folder = knobs.pop("folder", "archive")
    with zipfile.ZipFile(held, "w", **knobs) as file:
        file.writestr(f"{folder}/data.pkl", instructions)
        for name, data in ({"data/0": FOUR} if members is None else members).items():
            file.writestr(name if name.startswith(("/", "..")) else f"{folder}/{name}", data)
        file.writestr(f"{folder}/version", "3\n")
    return held.getvalue()


def row(instructions: bytes, keys: tuple[str, ...] = ("0",), storages: bytes = struct.pack("<q", 4) + FOUR) -> bytes:
    """A row of pickles, as before PyTorch 1.6."""
    machine = pickle.dumps({"little_endian": True}, protocol=2)
    return BEFORE_ZIP + machine + instructions + pickle.dumps(list(keys), protocol=2) + storages


def saved(tree: Any, as_zip: bool = True) -> bytes:
    held = io.BytesIO()
    torch.save(tree, held, _use_new_zipfile_serialization=as_zip)
    return held.getvalue()


def trained() -> dict[str, Any]:
    """A checkpoint as training scripts write them."""
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 5)).pow(2).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": {"n_layer": 2, "bias": False, "rate": 1.5, "name": None, "shape": torch.Size([2, 3])},
        "losses": [float(each) for each in range(1000)],
        "best_val_loss": torch.tensor(1.25),
        "dtype": torch.bfloat16,
    }


@legacy_too
def test_a_training_script_s_checkpoint_is_read_as_it_was(as_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    tree = trained()
    path.write_bytes(saved(tree, as_zip))
    read = read_torch(path)
    theirs = torch.load(path, weights_only=False)
    assert {name: value for name, value in read.items() if name not in ("model", "optimizer", "best_val_loss")} == {
        name: tree[name] for name in ("model_args", "losses", "dtype")
    }
    weights = find_weights(read, path)
    assert weights.keys() == theirs["model"].keys()
    assert all(torch.equal(weights[name], theirs["model"][name]) for name in weights)
    for name, moment in theirs["optimizer"]["state"][0].items():
        assert torch.equal(read["optimizer"]["state"][0][name], moment)


@legacy_too
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"])
def test_every_dtype_and_shape_is_read_exactly(dtype: str, as_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    whole = torch.randn(6, 8).mul(5).to(getattr(torch, dtype))
    tied = whole[:2]
    path.write_bytes(
        saved({"a": whole, "tied": tied, "turned": whole.T, "none": whole[:0], "one": whole[0, 0]}, as_zip)
    )
    weights = find_weights(read_torch(path), path)
    for name, wanted in {"a": whole, "tied": tied, "turned": whole.T, "none": whole[:0], "one": whole[0, 0]}.items():
        assert weights[name].dtype == wanted.dtype
        assert torch.equal(weights[name], wanted)


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"model": {"a": torch.ones(4)}, "optimizer": torch.zeros(1 << 26)}, path)  # 256 MB
    find_weights(read_torch(path), path)  # the program is loaded once before memory is looked at
    before = most_memory()
    weights = find_weights(read_torch(path), path)
    assert most_memory() - before < 64 << 20
    assert weights["a"].sum() == 4


@pytest.mark.parametrize("holder", ["", "model", "model_state_dict", "state_dict", "model_state"])
def test_weights_are_found_under_their_usual_names(holder: str, tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(2)}
    tree = {holder: state, "step": 3} if holder else state
    assert find_weights(tree, tmp_path / "a.pt").keys() == {"a.weight"}


def test_prefixes_of_compiling_and_spreading_are_taken_off_each_name(tmp_path: Path) -> None:
    names = ["_orig_mod.a", "module.b", "module._orig_mod.c", "_orig_mod.module.d", "e", "f.module.g", "modules.h"]
    weights = find_weights({"model": {name: torch.ones(1) for name in names}}, tmp_path / "a.pt")
    assert list(weights) == ["a", "b", "c", "d", "e", "f.module.g", "modules.h"]


def test_masks_come_along_and_gradients_do_not(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.nn.Parameter(torch.ones(2)), "mask": torch.ones(2, 2, dtype=torch.bool)}, path)
    weights = find_weights(read_torch(path), path)
    assert weights["mask"].dtype == torch.bool
    assert not weights["a"].requires_grad
    assert type(weights["a"]) is torch.Tensor


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({}, "no weights found"),
        ({"epoch": 3, "losses": [1.0]}, "it holds epoch, losses"),
        ({"model": {}}, "no weights found"),
        ({"model": {"a": torch.ones(1), "step": 3}}, "step holds int, not a tensor by name"),
        ({"model": {"a": torch.ones(1), 7: torch.ones(1)}}, "7 holds Tensor"),
        ({"model": {"a": torch.ones(1)}, "state_dict": {"a": torch.ones(1)}}, "under model and state_dict"),
        ({"a": torch.ones(1), "module.a": torch.ones(1)}, "tensor a is there twice"),
    ],
)
def test_what_is_no_state_dict_is_told_by_name(tree: dict[Any, Any], told: str, tmp_path: Path) -> None:
    assert told in refused(lambda: find_weights(tree, tmp_path / "a.pt"), tmp_path / "a.pt")


def marker(path: Path) -> str:
    return f"touch {path.parent / 'it-ran'}"


class Reduced:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.parts


PAYLOADS: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda path: Reduced(os.system, marker(path)),
    "eval": lambda path: Reduced(eval, f"__import__('os').system({marker(path)!r})"),
    "exec": lambda path: Reduced(exec, f"import os; os.system({marker(path)!r})"),
    "open": lambda path: Reduced(open, str(path.parent / "it-ran"), "w"),
    "getattr": lambda path: Reduced(getattr, "text", "format"),
    "subprocess": lambda path: Reduced(subprocess.check_output, ["touch", str(path.parent / "it-ran")]),
    "torch.load": lambda path: Reduced(torch.load, str(path)),
    "numpy": lambda path: np.float64(3.5),
    "module": lambda path: torch.nn.Linear(2, 2),
    "path": lambda path: path,
}


@legacy_too
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_file_that_would_run_something_is_refused_by_what_it_names(
    payload: str, as_zip: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(saved({"model": {"a": torch.ones(2)}, "more": PAYLOADS[payload](path)}, as_zip))
    line = refused(lambda: read_torch(path), path)
    assert "holds more than weights (" in line
    assert "torch.save(model.state_dict(), FILE)" in line


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_bare_pickle_is_not_looked_into(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(pickle.dumps(PAYLOADS["os.system"](path), protocol))
    refused(lambda: read_torch(path), path)
    path.write_bytes(archive(pickle.dumps({"a": PAYLOADS["os.system"](path)}, protocol)))
    refused(lambda: read_torch(path), path)


def test_the_hand_made_file_is_one_that_pytorch_reads(tmp_path: Path) -> None:
    """So that what is refused below is refused for what was done to it."""
    path = tmp_path / "a.pt"
    for data in (archive(program(a=tensor())), row(program(a=tensor(over=storage(more=b"N"))))):
        path.write_bytes(data)
        assert torch.load(path, weights_only=True)["a"].tolist() == [[1, 2], [3, 4]]
        assert read_torch(path)["a"].tolist() == [[1, 2], [3, 4]]


BILLION = 10**9
BAD_PROGRAMS: dict[str, bytes] = {
    "fills the memory with a bytearray": program(a=tensor(), b=called("builtins.bytearray", number(4 * BILLION))),
    "fills the memory with a tensor": program(a=tensor(), b=called("torch.Tensor", number(4 * BILLION))),
    "counts without end": program(a=tensor(), b=called("collections.Counter", text("aaa"))),
    "makes a tensor of nothing": program(
        a=b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n" + number(BILLION) + b"\x85" + b"tR"
    ),
    "claims a huge storage, and all of it": program(a=tensor((10**11,), (1,), over=storage(10**12))),
    "claims a negative storage": program(a=tensor((8,), (1,), over=storage(-4))),
    "claims a storage that is not there": program(a=tensor(over=storage(key="7"))),
    "claims a storage outside of the folder": program(a=tensor(over=storage(key="../data/0"))),
    "claims a storage of another kind": program(a=tensor(over=storage(kind="QInt8Storage"))),
    "claims a part of a storage": program(a=tensor(over=storage(more=text("view")))),
    "claims a huge tensor": program(a=tensor((BILLION,), (1,))),
    "repeats a small tensor": program(a=tensor((10**6, 10**6), (0, 0))),
    "a tensor behind its storage": program(a=tensor((2, 2), (2, 1), 4)),
    "a tensor before its storage": program(a=tensor((2, 2), (2, 1), -4)),
    "a negative shape": program(a=tensor((-2, 2), (2, 1))),
    "a negative stride": program(a=tensor((2, 2), (-2, 1))),
    "a shape beyond all numbers": program(a=tensor((2**62, 4), (4, 1))),
    "a shape of texts": program(a=tensor().replace(number(2), text("2"))),
    "no dictionary": b"\x80\x02]" + tensor() + b"a.",
    "a tensor alone": b"\x80\x02" + tensor() + b".",
    "no end": program(a=tensor())[:-1],
    "nothing": b"",
    "no instruction": b"\x80\x02\xff.",
    "an instruction of later pickles": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "a memory that was never filled": b"\x80\x02h\x07.",
    "an empty stack": b"\x80\x02tttQ.",
    "a text of 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
    "a text of 10^18 bytes": b"\x80\x04\x8d" + (10**18).to_bytes(8, "little") + b".",
    "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a deep nest": b"\x80\x02" + b"(" * 40_000 + b"t" * 40_000 + b".",
    "a reference to something else": b"\x80\x02" + text("storage") + b"Q.",
    "a hidden reference": b"\x80\x02(" + storage(10**12)[1:-1] + b"q\x01" + storage()[:-1] + b"h\x01Q.",
}


@legacy_too
@pytest.mark.parametrize("what", BAD_PROGRAMS)
def test_a_program_that_would_do_harm_is_refused(what: str, as_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    instructions = BAD_PROGRAMS[what]
    path.write_bytes(archive(instructions) if as_zip else row(instructions))
    refused(lambda: read_torch(path), path)


def overlapping() -> bytes:
    """Two entries in the table of contents that name the same bytes."""
    data = archive(program(a=tensor(), b=tensor(over=storage(key="1"))), {"data/0": FOUR, "data/1": FOUR})
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        one, other = (file.getinfo(f"archive/data/{key}").header_offset for key in "01")
    place = data.index(b"PK\x01\x02")
    return data[:place] + data[place:].replace(struct.pack("<I", other), struct.pack("<I", one))


def claiming(field: int, value: int) -> bytes:
    """A number in the table of contents, for the first member of the tensors, changed."""
    data = bytearray(archive(program(a=tensor())))
    place = data.rindex(b"archive/data/0") - 46
    assert data[place : place + 4] == b"PK\x01\x02"
    struct.pack_into("<I", data, place + field, value)
    return bytes(data)


def tarred() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name in ("storages", "tensors", "pickle"):
            file.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    return held.getvalue()


GOOD = archive(program(a=tensor()))
BAD_CONTAINERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a bomb": (
        lambda: archive(
            program(a=tensor((10**8,), (1,), over=storage(10**8))), {"data/0": bytes(4 * 10**7)}, compression=8
        ),
        "compressed",
    ),
    "compressed": (lambda: archive(program(a=tensor()), compression=zipfile.ZIP_LZMA), "compressed"),
    "a zip in a zip": (lambda: zip_of({"model.pt": GOOD}), ""),
    "an empty zip": (lambda: zip_of({}), "not a file that torch.save wrote"),
    "a member outside": (lambda: archive(program(a=tensor()), {"../x": b"", "data/0": FOUR}), ""),
    "lying over each other": (overlapping, ""),
    "both beyond the file": (lambda: both_sizes(10**9), ""),
    "an offset beyond the file": (lambda: claiming(42, 10**9), ""),
    "another sum": (lambda: claiming(16, 12345), "has changed since"),
    "encrypted": (lambda: claiming(8, 1), ""),
    "half of it": (lambda: GOOD[: len(GOOD) // 2], ""),
    "TorchScript": (lambda: archive(program(a=tensor()), {"constants.pkl": b"", "data/0": FOUR}), ""),
    "a tar file": (tarred, "tar file"),
    "empty": (lambda: b"", "is empty"),
    "a page": (lambda: b"<!doctype html><title>404</title>", "not a file that torch.save wrote"),
    "a pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not a file that torch.save"),
    "safetensors": (lambda: safetensors.torch.save({"a": torch.ones(2)}), "not a file that torch.save wrote"),
    "pickles with a storage missing": (lambda: row(program(a=tensor()), ()), ""),
    "pickles with a storage too many": (lambda: row(program(a=tensor()), ("0", "1")), ""),
    "pickles without their numbers": (lambda: row(program(a=tensor()), storages=b""), "cannot load"),
    "pickles of a huge tensor": (lambda: row(program(a=tensor((8,), (1,), over=storage(10**12, more=b"N")))), ""),
    "pickles of a stretched tensor": (
        lambda: row(program(a=tensor((10**8,), (1,), over=storage(more=b"N")))),
        "cannot load",
    ),
    "pickles with other numbers": (
        lambda: row(program(a=tensor(over=storage(more=b"N"))), storages=struct.pack("<q", 3) + FOUR),
        "cannot load",
    ),
    "pickles cut off": (lambda: row(program(a=tensor()))[:60], "damaged"),
}


def zip_of(members: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return held.getvalue()


def both_sizes(size: int) -> bytes:
    data = bytearray(claiming(20, size))
    struct.pack_into("<I", data, data.rindex(b"archive/data/0") - 46 + 24, size)
    return bytes(data)


@pytest.mark.parametrize("what", BAD_CONTAINERS)
def test_a_damaged_or_hostile_container_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    make, told = BAD_CONTAINERS[what]
    path.write_bytes(make())
    assert told in refused(lambda: read_torch(path), path)


@legacy_too
def test_a_file_that_was_cut_off_anywhere_is_refused(as_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    whole = saved({"a": torch.randn(4, 4), "b": torch.randn(3)}, as_zip)
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        refused(lambda: read_torch(path), path)


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    wanted = {"a": torch.randn(20, 20), "b": torch.randn(30)}
    found = 0
    for data in flips(saved(wanted), 300):
        path.write_bytes(data)
        try:
            read = read_torch(path)
        except UserError:
            found += 1
            continue
        assert read.keys() == wanted.keys()
        assert all(torch.equal(read[name], wanted[name]) for name in wanted)
    assert found > 200  # the rest lies in dates, and in room between members


@legacy_too
def test_a_program_with_flipped_bits_is_refused_or_gives_tensors_of_the_file(as_zip: bool, tmp_path: Path) -> None:
    """With its sums made right again, as whoever means harm would."""
    path = tmp_path / "a.pt"
    over = storage(more=b"" if as_zip else b"N")
    for instructions in flips(program(a=tensor(over=over), b=tensor((4,), (1,), over=over)), 200):
        path.write_bytes(archive(instructions) if as_zip else row(instructions))
        try:
            weights = find_weights(read_torch(path), path)
        except UserError:
            continue
        assert all(value.numel() <= 16 for value in weights.values())


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    assert "No such file" in refused(lambda: read_torch(tmp_path / "a.pt"), tmp_path / "a.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path, tmp_path / "pipe.pt"):
        assert "is not a file" in refused(lambda path=path: read_torch(path), path)  # type: ignore[misc]

"""GGUF is written as its own library reads it, read as that writes it, and what is claimed in it is checked."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from refusing import flips, refused

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.exchange.gguf import LARGEST_HEADER, Tensor, read_gguf, write_gguf

NOTES: dict[str, Any] = {
    "general.architecture": "gpt2",
    "general.name": "a näme",
    "a.count": 7,
    "a.large": 2**32 - 1,
    "a.rate": 1.25,
    "a.switch": True,
    "a.off": False,
    "a.texts": ["Ġa", "", "ĊĊ"],
    "a.numbers": [1, -3, 2**31 - 1],
    "a.nothing": [],
}


def weights() -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(5, 64, generator=chance),
        "b.weight": torch.randn(3, 2, 96, generator=chance) * 100,
        "c.bias": torch.randn(7, generator=chance),
        "d.weight": torch.cat([torch.zeros(1, 32), torch.full((1, 32), 1e-9), torch.randn(1, 32, generator=chance)]),
    }


def parts(kind: str, values: dict[str, torch.Tensor] | None = None) -> list[Tensor]:
    def made(value: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: value

    values = weights() if values is None else values
    fits = {name: kind if kind != "Q8_0" or not value.shape[-1] % 32 else "F32" for name, value in values.items()}
    return [Tensor(name, tuple(value.shape), fits[name], made(value)) for name, value in values.items()]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_its_own_library_reads_what_is_written(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, NOTES, parts(kind))
    theirs = gguf.GGUFReader(path)
    for key, value in NOTES.items():
        assert theirs.fields[key].contents() == value
    assert [tensor.name for tensor in theirs.tensors] == list(weights())
    for tensor in theirs.tensors:
        value = weights()[tensor.name]
        wanted = kind if value.shape[-1] % 32 == 0 or kind != "Q8_0" else "F32"
        assert tensor.tensor_type.name == wanted
        assert list(tensor.shape) == list(value.shape)[::-1]
        stored = gguf.quants.quantize(value.numpy(), GGMLQuantizationType[wanted])
        assert tensor.data.tobytes() == stored.tobytes()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_what_its_own_library_writes_is_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "gpt2")
    values = {
        "u8": 200,
        "i8": -7,
        "u16": 60000,
        "i16": -30000,
        "u32": 2**32 - 1,
        "i32": -5,
        "u64": 2**63,
        "i64": -(2**40),
    }
    for name, number in values.items():
        getattr(writer, f"add_{'u' if name[0] == 'u' else ''}int{name[1:]}")(f"a.{name}", number)
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "Ġé")
    writer.add_array("a.texts", ["a", "bé"])
    writer.add_array("a.floats", [0.5, 1.5])
    writer.add_array("a.bools", [True, False])
    writer.add_array("a.ints", [1, 2, 3])
    type_of = GGMLQuantizationType[kind]
    wanted = {name: value.numpy() for name, value in weights().items() if value.shape[-1] % 32 == 0}
    for name, value in wanted.items():
        writer.add_tensor(name, gguf.quants.quantize(value, type_of), raw_dtype=type_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata, tensors = read_gguf(path)
    assert {name: metadata[f"a.{name}"] for name in values} == values
    rest = ["a.f32", "a.f64", "a.bool", "a.text", "a.texts", "a.floats", "a.bools", "a.ints", "general.architecture"]
    assert [metadata[key] for key in rest] == [
        0.5,
        0.1,
        True,
        "Ġé",
        ["a", "bé"],
        [0.5, 1.5],
        [True, False],
        [1, 2, 3],
        "gpt2",
    ]
    assert list(tensors) == list(wanted)
    for name, value in wanted.items():
        stored = gguf.quants.quantize(value, type_of)
        assert np.array_equal(tensors[name].float().numpy(), gguf.quants.dequantize(stored, type_of))
        assert tensors.kind(name) == kind


def test_another_alignment_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_custom_alignment(256)
    for name in "abc":
        writer.add_tensor(name, np.full(9, ord(name), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, tensors = read_gguf(path)
    assert [tensors[name].tolist() for name in "abc"] == [[float(ord(name))] * 9 for name in "abc"]


def test_each_tensor_is_made_once_when_its_turn_comes(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> Callable[[], torch.Tensor]:
        return lambda: made.append(f"{name} at {(tmp_path / 'a').stat().st_size}") or torch.ones(1000)  # type: ignore[func-returns-value]

    write_gguf(tmp_path / "a", {}, [Tensor(name, (1000,), "F32", make(name)) for name in "ab"])
    begin = int(made[0].split()[-1])
    assert made == [f"a at {begin}", f"b at {begin + 4000}"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("F16", 1e5),
        ("F16", float("nan")),
        ("Q8_0", 1e7),
        ("Q8_0", float("nan")),
        ("F32", float("inf")),
        ("BF16", 3.395e38),
    ],
)
def test_a_weight_that_the_kind_cannot_hold_is_told(kind: str, value: float, tmp_path: Path) -> None:
    tensor = torch.ones(2, 32)
    tensor[1, 3] = value
    with (
        pytest.raises(UserError, match=rf"tensor a holds .* which {kind} cannot hold"),
        files.staged_file(tmp_path / "a.gguf") as staging,
    ):
        write_gguf(staging, {}, parts(kind, {"a": tensor}))
    assert list(tmp_path.iterdir()) == []


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def note(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def entry(name: str = "a", sizes: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes) + struct.pack("<IQ", kind, offset)


def built(
    notes: list[bytes],
    entries: list[bytes],
    data: bytes = bytes(64),
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file from its parts, sound or not."""
    tensors, keys = counts or (len(entries), len(notes))
    head = magic + struct.pack("<IQQ", version, tensors, keys) + b"".join(notes) + b"".join(entries)
    return head + bytes(-len(head) % 32) + data


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


def big_endian() -> bytes:
    return b"GGUF" + struct.pack(">IQQ", 3, 0, 0)


HUGE = 2**63
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "cut off"),
    "another file": (lambda: b"<!doctype html>", "not a GGUF file"),
    "wrong magic": (lambda: built([], [], magic=b"ggml"), "not a GGUF file"),
    "version 1": (lambda: built([], [], version=1), "GGUF of version 1"),
    "version 2^31": (lambda: built([], [], version=2**31), "of version"),
    "big-endian": (big_endian, "little-endian"),
    "a header cut off": (lambda: built([], [])[:20], "cut off"),
    "absurdly many tensors": (lambda: built([], [], counts=(HUGE, 0)), "claims 9,223,372,036,854,775,808 entries"),
    "absurdly many keys": (lambda: built([], [], counts=(0, HUGE)), "claims 9,223,372,036,854,775,808 entries"),
    "more keys than there are": (lambda: built([note("a", 4, bytes(4))], [], counts=(0, 3)), "there twice"),
    "more tensors than there are": (lambda: built([], [entry()], counts=(3, 0)), "empty, too long, or there twice"),
    "an absurd key": (lambda: built([struct.pack("<Q", HUGE) + b"a"], []), "cut off"),
    "an absurd text": (lambda: built([note("a", 8, struct.pack("<Q", HUGE))], []), "cut off"),
    "a text that is not UTF-8": (lambda: built([note("a", 8, text(b"\xff\xfe"))], []), "not UTF-8"),
    "a key that is not UTF-8": (lambda: built([text(b"\xff") + bytes(8)], []), "not UTF-8"),
    "an absurd array": (lambda: built([note("a", 9, array(5, HUGE))], []), "claims"),
    "an array of absurdly many texts": (lambda: built([note("a", 9, array(8, HUGE))], []), "claims"),
    "an array of absurdly many truths": (lambda: built([note("a", 9, array(7, HUGE))], []), "claims"),
    "arrays in arrays": (lambda: built([note("a", 9, array(9, 1) * 1000)], []), "or of arrays"),
    "an array of an unknown type": (lambda: built([note("a", 9, array(77, 1))], []), "array of type 77"),
    "a value of an unknown type": (lambda: built([note("a", 77, bytes(8))], []), "unknown type 77"),
    "a truth of 2": (lambda: built([note("a", 7, b"\x02")], []), "neither 0 nor 1"),
    "a key twice": (lambda: built([note("a", 4, bytes(4))] * 2, []), "there twice"),
    "a name twice": (lambda: built([], [entry(), entry(offset=32)]), "there twice"),
    "a long name": (lambda: built([], [entry("a" * 64)]), "too long"),
    "no name": (lambda: built([], [entry("")]), "empty"),
    "a name of 2^63 letters": (lambda: built([], [struct.pack("<Q", HUGE) + bytes(40)]), "cut off"),
    "no axes": (lambda: built([], [entry(sizes=())]), "claims 0 axes"),
    "a billion axes": (
        lambda: built([], [text("a") + struct.pack("<I", 10**9) + bytes(40)]),
        "claims 1,000,000,000 axes",
    ),
    "five axes": (lambda: built([], [entry(sizes=(1,) * 5)]), "claims 5 axes"),
    "an axis of nothing": (lambda: built([], [entry(sizes=(4, 0))]), "claims the shape"),
    "an absurd axis": (lambda: built([], [entry(sizes=(HUGE,))]), "behind the end"),
    "axes that multiply to nothing in 64 bits": (lambda: built([], [entry(sizes=(2**32, 2**32))]), "behind the end"),
    "a tensor larger than the file": (lambda: built([], [entry(sizes=(100,))]), "behind the end"),
    "an unknown kind": (lambda: built([], [entry(kind=12)]), "of kind 12"),
    "rows that do not fill blocks": (lambda: built([], [entry(kind=8, sizes=(33,))]), "claims the shape"),
    "an offset behind the end": (lambda: built([], [entry(offset=64)]), "behind the end"),
    "an absurd offset": (lambda: built([], [entry(offset=HUGE)]), "behind the end"),
    "an offset between": (lambda: built([], [entry(offset=7)]), "not at a multiple of 32"),
    "lying over each other": (
        lambda: built([], [entry("a", (9,)), entry("b", (4,), offset=32)]),
        "lie over each other",
    ),
    "an alignment of 0": (lambda: built([note("general.alignment", 4, bytes(4))], []), "power of two"),
    "an alignment of 24": (lambda: built([note("general.alignment", 4, struct.pack("<I", 24))], []), "power of two"),
    "an alignment of 2^31": (
        lambda: built([note("general.alignment", 4, struct.pack("<I", 2**31))], []),
        "power of two",
    ),
    "an alignment of text": (lambda: built([note("general.alignment", 8, text("32"))], []), "power of two"),
    "many small texts": (lambda: built([note("a", 9, array(8, 3_000_000, bytes(24_000_000)))], []), "claims"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_damaged_or_hostile_file_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    make, told = BAD[what]
    path.write_bytes(make())
    assert told in refused(lambda: read_gguf(path), path)


def test_the_file_that_is_changed_above_is_sound_before(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(built([note("a", 4, struct.pack("<I", 7))], [entry()], struct.pack("<4f", 1, 2, 3, 4)))
    metadata, tensors = read_gguf(path)
    assert metadata == {"a": 7}
    assert tensors["a"].tolist() == [1, 2, 3, 4]


def test_a_header_that_only_just_fits_is_read_soon(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    count = (LARGEST_HEADER - 1000) // 8
    path.write_bytes(built([note("a", 9, array(8, count, bytes(8 * count))), note("b", 77, b"")], []))
    assert "unknown type" in refused(lambda: read_gguf(path), path)


def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, NOTES, parts("F16", {"a": torch.randn(3, 32), "b": torch.randn(32)}))
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        refused(lambda: read_gguf(path), path)


def test_a_flipped_bit_is_refused_or_changes_a_value_and_nothing_worse(tmp_path: Path) -> None:
    """There are no sums in GGUF."""
    path = tmp_path / "a.gguf"
    write_gguf(path, NOTES, parts("Q8_0", {"a": torch.randn(3, 32), "b": torch.randn(32)}))
    refusals = 0
    for data in flips(path.read_bytes(), 300):
        path.write_bytes(data)
        try:
            _, tensors = read_gguf(path)
            assert all(tensor.numel() < 1000 for tensor in tensors.values())
        except UserError:
            refusals += 1
    assert refusals > 50


def test_a_file_cut_off_after_opening_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, {}, parts("F32"))
    _, tensors = read_gguf(path)
    os.truncate(path, 400)
    assert "cut off since" in refused(lambda: tensors["d.weight"], path)
    assert "No such file" in refused(lambda: read_gguf(tmp_path / "b.gguf"), tmp_path / "b.gguf")

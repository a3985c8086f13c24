"""TensorFlow's checkpoints are read exactly, and no claim of theirs is believed."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusing import flips, refused
from tensorflow_files import (
    MAGIC,
    block,
    entry,
    header,
    masked_sum,
    message,
    number,
    rows_and_data,
    sealed,
    table,
    table_of_blocks,
    varint,
    write,
)

from effort import tries
from hornbook.base.errors import UserError
from hornbook.exchange import tensorflow
from hornbook.exchange.tensorflow import read_checkpoint


def gpt2_variables(layers: int = 3, width: int = 8) -> dict[str, Any]:
    """What OpenAI's files name, in a small size."""
    chance = np.random.default_rng(0)
    sizes: dict[str, tuple[int, ...]] = {"model/wte": (50, width), "model/wpe": (12, width)}
    sizes |= {"model/ln_f/g": (width,), "model/ln_f/b": (width,)}
    for layer in range(layers):
        for norm in ("ln_1", "ln_2"):
            sizes |= {f"model/h{layer}/{norm}/{part}": (width,) for part in "gb"}
        for name, wide, out in (
            ("attn/c_attn", width, 3 * width),
            ("attn/c_proj", width, width),
            ("mlp/c_fc", width, 4 * width),
            ("mlp/c_proj", 4 * width, width),
        ):
            sizes |= {f"model/h{layer}/{name}/w": (1, wide, out), f"model/h{layer}/{name}/b": (out,)}
    return {name: chance.standard_normal(size).astype(np.float32) for name, size in sizes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As OpenAI published it."""
    rows, data = rows_and_data(gpt2_variables())
    write(tmp_path / "model.ckpt", table(rows), data)
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'
    )
    (tmp_path / "hparams.json").write_text('{"n_vocab": 50}')
    (tmp_path / "model.ckpt.meta").write_bytes(b"a graph")
    return tmp_path


@pytest.mark.parametrize("named", ["", "model.ckpt", "model.ckpt.index"])
def test_a_checkpoint_as_openai_published_it_is_read_exactly(named: str, folder: Path) -> None:
    wanted = gpt2_variables()
    read = read_checkpoint(folder / named)
    assert list(read) == sorted(wanted)
    assert len(read) == len(wanted)
    for name, value in wanted.items():
        assert read[name].dtype == torch.float32
        assert np.array_equal(read[name].numpy(), value)


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_tensors_are_found_in_several_data_files(shards: int, tmp_path: Path) -> None:
    wanted = gpt2_variables()
    rows, data = rows_and_data(wanted, shards)
    write(tmp_path / "model.ckpt", table(rows, in_a_block=40), data)
    read = read_checkpoint(tmp_path)
    assert all(np.array_equal(read[name].numpy(), value) for name, value in wanted.items())


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8"])
def test_every_dtype_is_read_exactly(dtype: str, tmp_path: Path) -> None:
    values = (np.random.default_rng(1).standard_normal((3, 5)) * 50).astype(dtype)
    wanted = {"a": values, "none": values[:0], "one": values[0, 0]}
    rows, data = rows_and_data(wanted)
    write(tmp_path / "a", table(rows), data)
    read = read_checkpoint(tmp_path / "a")
    for name, value in wanted.items():
        assert read[name].shape == value.shape
        assert np.array_equal(read[name].numpy(), value)
        assert read[name].numpy().dtype == value.dtype


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    values = torch.randn(3, 4).bfloat16()
    data = values.view(torch.int16).numpy().tobytes()
    rows = [(b"", header()), (b"a", entry(14, (3, 4), 0, len(data), masked_sum(data)))]
    write(tmp_path / "a", table(rows), [data])
    assert torch.equal(read_checkpoint(tmp_path)["a"], values)


def test_a_large_tensor_s_sum_is_checked_too(tmp_path: Path) -> None:
    values = np.random.default_rng(2).standard_normal((300, 301)).astype(np.float32)
    rows, (data,) = rows_and_data({"a": values})
    write(tmp_path / "a", table(rows), [data])
    assert np.array_equal(read_checkpoint(tmp_path)["a"].numpy(), values)
    for changed in flips(data, 10):
        write(tmp_path / "a", table(rows), [changed])
        path = tmp_path / "a.data-00000-of-00001"
        assert "'a' has changed since it was written" in refused(lambda: read_checkpoint(tmp_path)["a"], path)


def test_opening_reads_no_numbers(tmp_path: Path) -> None:
    rows = [(b"", header()), (b"a", entry(1, (1 << 30,), 0, 1 << 32, bytes(4)))]
    write(tmp_path / "a", table(rows), [b""])
    os.truncate(tmp_path / "a.data-00000-of-00001", 1 << 32)
    assert list(read_checkpoint(tmp_path)) == ["a"]


def test_what_tensorflow_2_notes_of_its_objects_is_no_tensor(tmp_path: Path) -> None:
    rows, (data,) = rows_and_data({"a": np.ones(2, np.float32), "b": np.ones(3, np.int64)})
    graph = (b"_CHECKPOINTABLE_OBJECT_GRAPH", entry(7, (), len(data), 5, bytes(4)))
    text = (b"c", entry(7, (), len(data) + 5, 5, bytes(4)))
    write(tmp_path / "a", table([rows[0], graph, *rows[1:], text]), [data + bytes(10)])
    read = read_checkpoint(tmp_path)
    assert list(read) == ["a", "b", "c"]
    assert "'c' holds text" in refused(lambda: read["c"], tmp_path / "a.data-00000-of-00001")


def test_the_folder_s_note_names_a_file_of_the_folder_only(folder: Path) -> None:
    elsewhere = folder.parent / f"{folder.name}-elsewhere"
    elsewhere.mkdir()
    rows, data = rows_and_data({"secret": np.ones(2, np.float32)})
    write(elsewhere / "model.ckpt", table(rows), data)
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{elsewhere}/model.ckpt"\n')
    assert "model/wte" in read_checkpoint(folder)
    (folder / "checkpoint").write_text('model_checkpoint_path: "other.ckpt"\n')
    assert "other.ckpt.index is missing" in refused(lambda: read_checkpoint(folder), folder)


def test_a_folder_without_a_note_may_have_one_checkpoint(folder: Path) -> None:
    (folder / "checkpoint").unlink()
    assert "model/wte" in read_checkpoint(folder)
    (folder / "other.index").write_bytes(b"")
    assert "2 of *.index" in refused(lambda: read_checkpoint(folder), folder)
    assert "no TensorFlow checkpoint" in refused(lambda: read_checkpoint(folder / "third"), folder / "third")


def ones(**knobs: Any) -> bytes:
    """An entry for four ones, but for what is said."""
    data = np.ones(4, np.float32).tobytes()
    knobs = {"kind": 1, "sizes": (4,), "offset": 0, "size": 16, "sum": masked_sum(data)} | knobs
    return entry(**knobs)


def indexed(*rows: tuple[bytes, bytes], head: bytes | None = None) -> bytes:
    return table([(b"", header() if head is None else head), *rows])


def with_footer(place: int, value: bytes) -> bytes:
    whole = indexed((b"a", ones()))
    return whole[: len(whole) - 48 + place] + value + whole[len(whole) - 48 + place + len(value) :]


def long_names() -> bytes:
    """Each name is the one before and a letter more: they would fill the memory if they might."""
    rows = varint(0) + varint(900) + varint(0) + b"a" * 900
    rows += b"".join(varint(900 + more) + varint(1) + varint(0) + b"a" for more in range(2000))
    return table_of_blocks([(b"", block([(b"", header())])), (b"a", rows + struct.pack("<II", 0, 1))])


def many_blocks(rows: list[tuple[bytes, bytes]], times: int) -> bytes:
    """One block, named over and over."""
    whole = block(rows)
    index = block([(b"%05d" % each, varint(0) + varint(len(whole))) for each in range(times)], 1)
    file = sealed(whole)
    where = varint(len(file)) + varint(len(index))
    file += sealed(index)
    return file + (varint(0) * 2 + where).ljust(40, b"\0") + MAGIC


HUGE = 2**62
BAD_INDEXES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not the index"),
    "another file": (lambda: b"<html></html>" * 10, "not the index"),
    "wrong magic": (lambda: with_footer(40, b"\0" * 8), "not the index"),
    "a footer of one bits": (lambda: with_footer(0, b"\xff" * 40), "damaged"),
    "a block behind the end": (lambda: with_footer(0, varint(0) * 2 + varint(10**6) + varint(9)), "damaged"),
    "a block of 2^62 bytes": (lambda: with_footer(0, varint(0) * 2 + varint(0) + varint(HUGE)), "damaged"),
    "a block within the footer": (lambda: with_footer(0, varint(0) * 2 + varint(60) + varint(60)), "damaged"),
    "compressed": (lambda: table([(b"", header()), (b"a", ones())], kind=1), "compressed"),
    "no header": (lambda: table([(b"a", ones())]), "claims 0 data files"),
    "no rows": (lambda: table([]), "claims 0 data files"),
    "no shards": (lambda: indexed((b"a", ones()), head=header(0)), "claims 0 data files"),
    "negative shards": (lambda: indexed((b"a", ones()), head=header(-1)), "claims -1 data files"),
    "a billion shards": (lambda: indexed((b"a", ones()), head=header(10**9)), "claims 1000000000 data files"),
    "a shard that is missing": (lambda: indexed((b"a", ones()), head=header(2)), "is missing, or is not a file"),
    "big-endian": (lambda: indexed((b"a", ones()), head=header(1, 1)), "big-endian"),
    "a header of text": (lambda: indexed(head=b"\x0a\x02hi"), "damaged"),
    "a header cut off": (lambda: indexed(head=header()[:-1]), "damaged"),
    "groups in a header": (lambda: indexed(head=b"\x0b\x0c"), "damaged"),
    "another shard": (lambda: indexed((b"a", ones(shard=1))), "data file 1"),
    "a negative shard": (lambda: indexed((b"a", ones(shard=-1))), "data file -1"),
    "an offset behind the data": (lambda: indexed((b"a", ones(offset=8))), "16 bytes from 8 on"),
    "a huge offset": (lambda: indexed((b"a", ones(offset=HUGE))), "bytes from"),
    "a negative offset": (lambda: indexed((b"a", ones(offset=-16))), "from -16"),
    "a huge size": (lambda: indexed((b"a", ones(size=HUGE, sizes=(HUGE // 4,)))), "claims the shape"),
    "a size beyond the file": (lambda: indexed((b"a", ones(size=32, sizes=(8,)))), "claims 32 bytes"),
    "a negative size": (lambda: indexed((b"a", ones(size=-16))), "claims -16 bytes"),
    "a shape that does not fit": (lambda: indexed((b"a", ones(sizes=(5,)))), "do not make the shape (5,)"),
    "a negative shape": (lambda: indexed((b"a", ones(sizes=(-2, -2)))), "claims the shape (-2, -2)"),
    "a huge shape of nothing": (lambda: indexed((b"a", ones(sizes=(HUGE, 0), size=0))), "claims the shape"),
    "a shape of many axes": (lambda: indexed((b"a", ones(sizes=(1,) * 200))), "claims the shape"),
    "a shape of very many axes": (lambda: indexed((b"a", ones(sizes=(1,) * 9000))), "damaged"),
    "an unknown shape": (lambda: indexed((b"a", message(2, number(3, 1)) + number(1, 1))), "no known shape"),
    "a number for a shape": (lambda: indexed((b"a", number(2, 3))), "damaged"),
    "slices": (lambda: indexed((b"a", ones(more=message(7, b"")))), "saved in slices"),
    "an entry cut off": (lambda: indexed((b"a", ones()[:-2])), "damaged"),
    "an endless number": (lambda: indexed((b"a", b"\xff" * 30)), "damaged"),
    "names out of order": (lambda: indexed((b"b", ones()), (b"a", ones())), "out of order"),
    "a name twice": (lambda: indexed((b"a", ones()), (b"a", ones())), "out of order"),
    "lying over each other": (
        lambda: indexed((b"a", ones()), (b"b", ones(offset=8, sizes=(2,), size=8))),
        "'a' and 'b' lie over each other",
    ),
    "names that grow": (long_names, "damaged"),
    "a long name": (lambda: indexed((b"a" * 5000, ones())), "damaged"),
    "a block of blocks": (lambda: many_blocks([], tries(20_000, 60_000)), "out of order"),
    "a block named twice": (lambda: many_blocks([(b"", header())], 2), "out of order"),
    "too many tensors": (
        lambda: table([(b"%06d" % each, b"") for each in range(50_100)], 60_000),
        "claims over 50,000",
    ),
    "more restarts than bytes": (
        lambda: table_of_blocks([(b"", struct.pack("<I", 10**9))]),
        "damaged",
    ),
    "a block of two bytes": (lambda: table_of_blocks([(b"", b"ab")]), "damaged"),
    "a value out of its block": (
        lambda: table_of_blocks([(b"", varint(0) + varint(0) + varint(900) + b"a" + struct.pack("<II", 0, 1))]),
        "damaged",
    ),
}


@pytest.mark.parametrize("what", BAD_INDEXES)
def test_a_damaged_or_hostile_index_is_refused(what: str, tmp_path: Path) -> None:
    make, told = BAD_INDEXES[what]
    write(tmp_path / "model.ckpt", make(), [np.ones(4, np.float32).tobytes()])
    assert told in refused(lambda: read_checkpoint(tmp_path), tmp_path / "model.ckpt.index")


def test_the_entry_that_is_changed_above_is_sound_before(tmp_path: Path) -> None:
    write(tmp_path / "a", indexed((b"a", ones())), [np.ones(4, np.float32).tobytes()])
    assert read_checkpoint(tmp_path)["a"].tolist() == [1, 1, 1, 1]


def test_every_flipped_bit_is_found(folder: Path) -> None:
    wanted = gpt2_variables()
    index, data = folder / "model.ckpt.index", folder / "model.ckpt.data-00000-of-00001"

    for path in (index, data):
        whole, found = path.read_bytes(), 0
        for changed in flips(whole, 150):
            path.write_bytes(changed)
            try:
                read = dict(read_checkpoint(folder).items())
            except UserError:
                found += 1
                continue
            assert all(np.array_equal(read[name].numpy(), value) for name, value in wanted.items())
        path.write_bytes(whole)
        # All of the data; of the index, all but the table about the table, its handle, and the room behind handles.
        assert found == 150 if path == data else found > 140


@pytest.mark.parametrize("name", ["model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_a_file_that_was_cut_off_anywhere_is_refused(name: str, folder: Path) -> None:
    path = folder / name
    whole = path.read_bytes()
    for size in range(0, len(whole), len(whole) // 30):
        path.write_bytes(whole[:size])
        refused(lambda: read_checkpoint(folder), folder / "model.ckpt.index")


def test_data_cut_off_after_opening_is_told(folder: Path) -> None:
    read = read_checkpoint(folder)
    data = folder / "model.ckpt.data-00000-of-00001"
    os.truncate(data, 100)
    assert "has changed since" in refused(lambda: read["model/wte"], data)


def test_a_pipe_or_a_huge_index_is_not_read(tmp_path: Path) -> None:
    index = tmp_path / "a.index"
    os.mkfifo(index)
    assert "is not a file" in refused(lambda: read_checkpoint(tmp_path / "a.index"), index)
    index.unlink()
    write(tmp_path / "a", indexed((b"a", ones())), [])
    os.mkfifo(tmp_path / "a.data-00000-of-00001")
    assert "is not a file" in refused(lambda: read_checkpoint(tmp_path), index)
    os.truncate(index, tensorflow.LARGEST_INDEX + 1)
    assert "an index of weights" in refused(lambda: read_checkpoint(tmp_path), index)

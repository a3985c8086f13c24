"""Files that were made to do harm fill no memory, open no other file and write nothing; and honest large ones are read
in flat memory."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import lzma
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pytest
from formats_at_hand import COMPRESS, as_hdf5, as_parquet, texts_of, zstd
from pyarrow import parquet

from effort import long, tries
from hornbook.base.errors import UserError

MEGABYTE = 1 << 20
# Reads a file in a process of its own, and tells by how much memory grew while it did.
CHILD = """
import json, resource, sys
import h5py, pyarrow.parquet
from hornbook.base.errors import UserError
from hornbook.text.documents import TextConfig
from hornbook.text.readers import source_from_path
from pathlib import Path
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
told, size, documents = "", 0, 0
try:
    for document in source_from_path(Path(sys.argv[1]), TextConfig(**json.loads(sys.argv[2]))).documents():
        size += document.size
        documents += document.ends
except UserError as error:
    told = str(error)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
print(json.dumps({"told": told, "size": size, "documents": documents, "grown": grown}))
"""


def read_in_a_child(path: Path, **knobs: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), json.dumps(knobs)], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def fill(path: Path, pieces: Iterable[bytes]) -> None:
    """A file, compressed as its name says, written piece by piece."""
    openers: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
        ".gz": (gzip.open, {"compresslevel": 1}),
        ".zst": (zstd.open, {"level": 1}),
        ".xz": (lzma.open, {"preset": 0}),
    }
    opener, options = openers.get(path.suffix, (open, {}))
    with opener(path, "wb", **options) as file:
        for piece in pieces:
            file.write(piece)


BEGIN_AND_END = {"a.jsonl": (b'{"text": "', b'"}\n'), "a.json": (b'["', b'"]'), "a.csv": (b'text\n"', b'"\n')}
PAIRS = [("a.json", ".zst")]


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        pytest.param(*pair, marks=() if pair in PAIRS else long)
        for pair in itertools.product(BEGIN_AND_END, (".gz", ".zst", ".xz"))
    ],
)
def test_a_bomb_of_one_record_stops_at_the_largest_there_may_be(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}{ending}"
    (begin, end), filling = BEGIN_AND_END[name], b"a" * MEGABYTE
    fill(path, [begin, *[filling] * 600, end])
    assert path.stat().st_size < 4 * MEGABYTE
    found = read_in_a_child(path)
    assert "64 MB" in found["told"]
    assert name in found["told"]
    assert found["grown"] < 300 * MEGABYTE


@pytest.mark.parametrize("name", ["a.txt.gz", pytest.param("a.txt.zst", marks=long)])
def test_a_bomb_of_text_is_a_long_text_and_fills_no_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    fill(path, [b"a" * MEGABYTE] * 600)
    found = read_in_a_child(path)
    assert found["size"] == 600 * MEGABYTE
    assert found["grown"] < 150 * MEGABYTE


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.csv.xz", "a.json.bz2"])
def test_a_bomb_of_zeros_is_not_even_begun(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(COMPRESS[path.suffix](bytes(50 * MEGABYTE)))
    with pytest.raises(UserError, match="binary"):
        texts_of(path)


def test_a_decompressor_is_not_given_the_memory_that_a_header_asks_for(tmp_path: Path) -> None:
    data = bytearray(lzma.compress(b"text", preset=0))
    data[16] = 36  # a dictionary of 1 GB
    length = (data[12] + 1) * 4
    data[12 + length - 4 : 12 + length] = zlib.crc32(bytes(data[12 : 12 + length - 4])).to_bytes(4, "little")
    (tmp_path / "a.txt.xz").write_bytes(data)
    assert lzma.decompress(bytes(data)) == b"text"  # it is sound otherwise
    with pytest.raises(UserError, match=r"a\.txt\.xz: .*[Mm]emory"):
        texts_of(tmp_path / "a.txt.xz")
    (tmp_path / "a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00\xa8\x09\x00\x00a")  # a window of 2 GB
    with pytest.raises(UserError, match=r"a\.txt\.zst: .*(memory|window)"):
        texts_of(tmp_path / "a.txt.zst")


def test_a_parquet_row_that_is_repeated_a_thousand_times_does_not_multiply(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    one = pyarrow.array(["a" * (16 * MEGABYTE)])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 60, pyarrow.int32()), one)
    parquet.write_table(pyarrow.table({"text": column}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < MEGABYTE
    found = read_in_a_child(path)
    assert found["size"] == 60 * 16 * MEGABYTE
    assert found["grown"] < 600 * MEGABYTE


def test_a_parquet_page_is_not_given_the_memory_that_it_claims(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    data = as_parquet(["some text"] * 100, use_dictionary=False, compression="none")
    begin = parquet.read_metadata(io.BytesIO(data)).row_group(0).column(1).data_page_offset
    place = begin
    for _ in range(2):  # past the page's kind and its size before compression
        assert data[place] == 0x15
        place = end_of_number(data, place + 1)
    assert data[place] == 0x15
    claimed = 2 * 1_700_000_000
    number = bytes([claimed >> shift & 0x7F | 0x80 for shift in (0, 7, 14, 21)] + [claimed >> 28])
    path.write_bytes(data[: place + 1] + number + data[end_of_number(data, place + 1) :])
    found = read_in_a_child(path)
    assert "a.parquet: not a sound parquet file" in found["told"]
    assert found["grown"] < 100 * MEGABYTE


def end_of_number(data: bytes, place: int) -> int:
    while data[place] & 0x80:
        place += 1
    return place + 1


def test_hdf5_opens_no_other_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    secret.write_bytes(as_hdf5([1, 2, 3]))
    path = tmp_path / "a.h5"

    def link(file: h5py.File) -> None:
        file["tokens"] = h5py.ExternalLink(str(secret), "/tokens")

    def soft(file: h5py.File) -> None:
        file["there"] = h5py.ExternalLink(str(secret), "/tokens")
        file["tokens"] = h5py.SoftLink("/there")

    def raw(file: h5py.File) -> None:
        file.create_dataset("tokens", (2,), np.int32, external=[(str(secret), 0, 8)])

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((3,), np.int32)
        layout[:] = h5py.VirtualSource(str(secret), "tokens", (3,))
        file.create_virtual_dataset("tokens", layout)

    for make in (link, soft, raw, virtual):
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(UserError, match=r"a\.h5: "):
            texts_of(path)
    with h5py.File(path, "w") as file:
        file["group"] = h5py.ExternalLink(str(secret), "/")
    with pytest.raises(UserError, match="no data set"):
        texts_of(path, field="group/tokens")


def test_hdf5_is_not_believed_what_it_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("tokens", (10**12,), np.int32, chunks=(1 << 20,))
    with pytest.raises(UserError, match="claims 1,000,000,000,000 ids"):
        texts_of(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("tokens", (7 * 10**7,), np.int32, chunks=(7 * 10**7,), compression="gzip")[:10] = 1
    found = read_in_a_child(path)
    assert "chunks above" in found["told"]
    assert found["grown"] < 50 * MEGABYTE


def test_a_packed_table_that_would_fill_the_disk_is_stopped(
    tmp_path: Path, hornbook_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress(b"PAR1" + bytes(50 * MEGABYTE)))
    monkeypatch.setattr("hornbook.base.files.free_bytes", lambda folder: 40 * MEGABYTE)
    with pytest.raises(UserError, match=r"a\.parquet\.gz: a stream of more than 20 MB"):
        texts_of(path)
    assert list((hornbook_home / "spool").iterdir()) == []


def test_names_inside_the_data_are_only_names(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "a", "name": "../../evil", "../../field": "b"}\n')
    assert texts_of(folder, field="../../field") == ["b"]
    with (folder / "b.jsonl.gz").open("wb") as out, gzip.GzipFile("../../evil.txt", "wb", fileobj=out) as archive:
        archive.write(b'"c"\n')
    assert texts_of(folder / "b.jsonl.gz") == ["c"]
    assert {path.name for path in tmp_path.rglob("*")} == {"in", "a.jsonl", "b.jsonl.gz"}


def test_a_device_or_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for name in (tmp_path / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(UserError, match="standard input"):
            texts_of(name)
    (tmp_path / "a.txt").write_text("a")
    assert texts_of(tmp_path) == ["a"]


def some_lines(text: str, megabytes: int) -> Iterator[bytes]:
    words = (text * (MEGABYTE // len(text) + 1))[:MEGABYTE]
    for number in range(megabytes):
        for place in range(0, MEGABYTE, 4096):
            yield (
                json.dumps({"text": f"{number} {words[place : place + 4096]}", "meta": {"set": "Pile-CC"}}).encode()
                + b"\n"
            )


@pytest.mark.parametrize(
    "name",
    ["a.jsonl.zst", "e.parquet", *(pytest.param(each, marks=long) for each in ("b.txt.gz", "c.json.xz", "d.csv"))],
)
def test_memory_is_flat_however_large_the_file(name: str, some_text: str, tmp_path: Path) -> None:
    grown = {}
    little, much = tries(10, 20), tries(60, 100)
    for megabytes in (little, much):
        path = tmp_path / name
        lines = some_lines(some_text, megabytes)
        if name == "c.json.xz":
            lines = (line.replace(b"\n", b",\n") for line in lines)
            fill(path, itertools.chain([b"["], lines, [b'"end"]']))
        elif name == "d.csv":
            rows = (b'"' + line.replace(b'"', b'""')[:-1] + b'"\n' for line in lines)
            fill(path, itertools.chain([b"text\n"], rows))
        elif name == "e.parquet":
            texts = [json.loads(line)["text"] for line in lines]
            parquet.write_table(
                pyarrow.table({"text": texts}), path, compression="none"
            )  # one row group, as from pandas
        else:
            fill(path, lines)
        found = read_in_a_child(path)
        assert found["told"] == ""
        assert found["size"] >= 0.99 * megabytes * MEGABYTE
        grown[megabytes] = found["grown"] / MEGABYTE
    assert grown[much] < 80
    assert grown[much] < grown[little] + 20

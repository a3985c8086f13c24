"""Files of every format and compression, made by others than the readers: the standard library, pyarrow, h5py."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
from pyarrow import parquet

from hornbook.text.documents import TextConfig
from hornbook.text.readers import source_from_path
from hornbook.text.streams import Tally

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def as_jsonl(texts: Sequence[Any]) -> bytes:
    return b"".join(json.dumps({"text": text, "meta": {"n": 1}}).encode() + b"\n" for text in texts)


def as_json(texts: Sequence[Any]) -> bytes:
    return json.dumps([{"text": text, "n": 1} for text in texts], indent=1, ensure_ascii=False).encode()


def as_csv(texts: Sequence[str], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([("n", "text"), *enumerate(texts)])
    return out.getvalue().encode()


def as_tsv(texts: Sequence[str]) -> bytes:
    return as_csv(texts, "\t")


def as_parquet(texts: Sequence[str | None], **options: Any) -> bytes:
    out = io.BytesIO()
    table = pyarrow.table({"n": list(range(len(texts))), "text": pyarrow.array(texts, pyarrow.string())})
    parquet.write_table(table, out, write_page_checksum=True, **options)
    return out.getvalue()


def as_hdf5(ids: Sequence[int], name: str = "tokens", **options: Any) -> bytes:
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file.create_dataset(name, data=np.array(ids, dtype=np.int32), **options)
    return out.getvalue()


RECORDS: dict[str, Callable[[Sequence[str]], bytes]] = {
    ".jsonl": as_jsonl,
    ".json": as_json,
    ".csv": as_csv,
    ".tsv": as_tsv,
    ".parquet": as_parquet,
}


def texts_of(path: Path, tally: Tally | None = None, **knobs: Any) -> list[str]:
    return [document.text for document in source_from_path(path, TextConfig(**knobs)).documents(tally)]

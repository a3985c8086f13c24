"""Formats that a library reads: Parquet and HDF5.

In: a file in which a library goes back and forth.  Out: the documents of a column of text, or an array of ids. The
libraries are imported when such a file is met. What a damaged or hostile file makes them raise, claim or follow ends
here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hornbook.base.errors import UserError
from hornbook.base.spool import spooled
from hornbook.text.records import TOO_LONG, Document, Found, Input, choose_field, listed, short
from hornbook.text.streams import LARGEST_RECORD, Trouble, brief, compression_of

# Few, since a file may say one long text in a thousand rows at no cost: 64 would be 1.4 times as fast.
PARQUET_ROWS = 8
PAGE_BUFFER = 1 << 20
LARGEST_HELD = 32 << 20
IDS_AT_ONCE = 1 << 20
# What the chunks of an HDF5 file may expand to; a chunk is decompressed whole.
LARGEST_CHUNK = 256 << 20
# gzip cannot make bytes fewer than by this factor: a file that claims more has nothing to show for it.
LARGEST_RATIO = 1100


def read_parquet(input: Input) -> Iterator[Found]:
    """The rows of a column, a few at a time."""
    import pyarrow
    from pyarrow import parquet

    with _seekable(input) as path, _library_trouble("parquet"), path.open("rb") as opened:
        metadata = parquet.read_metadata(opened)
        groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        sizes = (group.column(n).total_compressed_size for group in groups for n in range(group.num_columns))
        # A column's part of a row group is held whole where it is small, for pyarrow cuts it out before it believes
        # what a page claims; a large one, which is the whole file where pandas wrote it, is read page by page.
        buffer = PAGE_BUFFER if min(max(sizes, default=0), path.stat().st_size) > LARGEST_HELD else 0
        file = parquet.ParquetFile(
            opened,
            metadata=metadata,
            pre_buffer=False,
            buffer_size=buffer,
            page_checksum_verification=True,
            # So a column of categories comes as its words; otherwise every few rows would bring the whole dictionary.
            binary_type=pyarrow.large_binary(),
        )
        is_text = {each.name: _is_text(pyarrow, each.type) for each in file.schema_arrow}
        column = input.field or choose_field(is_text)
        if column not in is_text:
            raise Trouble(f"has no column {short(column)}; it has {listed(is_text)}")
        if not is_text[column]:
            raise Trouble(f"column {short(column)} holds {file.schema_arrow.field(column).type}, not text")
        number = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=[column], use_threads=False):
            # As bytes: pyarrow itself would stop at what is not UTF-8.
            for value in batch.column(0).cast(pyarrow.large_binary()):
                number += 1
                try:
                    data = value.as_py()
                    if data is None:
                        raise Trouble(f"column {short(column)} should hold text, not null")
                    if len(data) > LARGEST_RECORD:
                        raise Trouble(TOO_LONG)
                    yield input.record(f"row {number}", input.decode(data))
                except Trouble as trouble:
                    yield trouble.at(f"row {number}")


def read_hdf5(input: Input) -> Iterator[Found]:
    """The ids in a data set, `tokens` when no field is given: one document, that holds its ends of text already."""
    try:
        import h5py
    except ImportError:
        raise Trouble("HDF5 is read by h5py: pip install 'hornbook[hdf5]'") from None
    name = input.field or "tokens"
    with _seekable(input) as path, _library_trouble("HDF5"), h5py.File(path, "r") as file:
        # A link, an external or a virtual data set would read another file of this machine.
        if name not in set(file) or not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise Trouble(f"has no data set {short(name)}; it has {listed(file)}")
        data = file[name]
        if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
            raise Trouble(f"{short(name)} is not a data set of this file")
        if data.ndim != 1 or data.dtype.kind not in "iu":
            raise Trouble(f"{short(name)} should be one row of whole numbers, not {data.ndim} axes of {data.dtype}")
        if data.chunks and data.chunks[0] * data.dtype.itemsize > LARGEST_CHUNK:
            raise Trouble(f"is cut into chunks above {LARGEST_CHUNK >> 20} MB; write it again with smaller ones")
        if data.nbytes > LARGEST_RATIO * data.id.get_storage_size():
            raise Trouble(f"claims {len(data):,} ids, but holds only {data.id.get_storage_size()} bytes")
        for begin in range(0, len(data), IDS_AT_ONCE):
            ids = data[begin : begin + IDS_AT_ONCE]
            if ids.min() < 0 or ids.max() >= 2**32:
                raise Trouble(f"an id below 0, or above {2**32 - 1}", f"ids from {begin:,}")
            yield Document(input.name, "", ends=begin + len(ids) == len(data), ids=ids.astype("uint32"))


@contextlib.contextmanager
def _library_trouble(format: str) -> Iterator[None]:
    """A library's own errors, of which a damaged file can bring any."""
    try:
        yield
    except (Trouble, GeneratorExit):
        raise
    except OSError as error:
        if error.strerror and error.filename:
            raise Trouble(f"cannot be read ({error.strerror})") from None
        raise Trouble(f"not a sound {format} file ({brief(error)})") from None
    except Exception as error:
        raise Trouble(f"not a sound {format} file ({brief(error)})") from None


@contextlib.contextmanager
def _seekable(input: Input) -> Iterator[Path]:
    """The path of the file, or of a copy that is decompressed."""
    if not compression_of(input.path.name):
        yield input.path
        return
    with contextlib.ExitStack() as stack:
        try:
            path, _ = stack.enter_context(spooled(input.blocks(), str(input.path)))
        except UserError as error:
            raise Trouble(str(error)) from None
        yield path


def _is_text(pyarrow: Any, type: Any) -> bool:
    kinds = pyarrow.types
    return bool(kinds.is_string(type) or kinds.is_large_string(type) or kinds.is_string_view(type))

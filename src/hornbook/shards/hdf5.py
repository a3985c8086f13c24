"""Prepared ids as HDF5, for programs that read them so.

In: shards, and a name such as pile.h5.  Out: a file for each split beside it, pile_train.h5 and pile_val.h5, whose one
array `tokens` holds the ids as int32, the end of a text after every document. text/columns.py reads such files.
"""

from __future__ import annotations

import os
from pathlib import Path

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.shards.format import Shards
from hornbook.shards.splits import SPLITS

IDS_AT_ONCE = 1 << 20
ENDINGS = (".h5", ".hdf5")


def places_for(out: Path) -> dict[str, Path]:
    """A name for each split, none of which may be taken; asked before anything is prepared."""
    try:
        import h5py  # noqa: F401
    except ImportError:
        raise UserError("--to hdf5: HDF5 is written by h5py: pip install 'hornbook[hdf5]'") from None
    if out.suffix not in ENDINGS:
        raise UserError(f"--to hdf5 {out}: name a file that ends in {' or '.join(ENDINGS)}, such as {out}.h5")
    places = {split: out.with_name(f"{out.stem}_{split}{out.suffix}") for split in SPLITS}
    if taken := [place for place in places.values() if os.path.lexists(place)]:
        raise UserError(f"{taken[0]}: is there already; choose another name, or move it away")
    return places


def write_hdf5(shards: Shards, places: dict[str, Path]) -> list[Path]:
    import h5py

    written = []
    for split in shards.manifest["splits"]:
        tokens = shards.split(split)
        with files.staged_file(places[split]) as staging, h5py.File(staging, "w") as file:
            array = file.create_dataset("tokens", (len(tokens),), dtype="<i4")
            for begin in range(0, len(tokens), IDS_AT_ONCE):
                length = min(IDS_AT_ONCE, len(tokens) - begin)
                array[begin : begin + length] = tokens.read(begin, length)
        written.append(places[split])
    return written

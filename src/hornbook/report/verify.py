"""Is what lies on disk as it was written?

In: a run, a checkpoint or snapshot, or a folder of shards.  Out: for each folder, and for a run's record, what is wrong
with it, or None. What lies there and is not ours is named, which is no damage.
"""

from __future__ import annotations

from pathlib import Path

from hornbook.base import files, ours
from hornbook.base.errors import UserError
from hornbook.model.folder import RUN, data_of_run, kept_folders
from hornbook.shards.format import Shards, is_shards, listed


def verify(path: Path) -> dict[Path, str | None]:
    if is_shards(path):
        return {path: _damage_of_shards(path)}
    if (path / files.MANIFEST).is_file():
        return {path: _damage(path)}
    if not (path / RUN).is_file():
        raise UserError(f"{path}: neither a run, nor a checkpoint, nor shards; nothing says how it should be")
    record, shards = files.read_json(path / RUN), data_of_run(path)
    edited = "was edited since it was written" if ours.is_edited(record) else None
    found = {path / RUN: edited} if "sha256" in record else {}  # older ones cannot tell
    return {**found, **{kept: _damage(kept) for kept in kept_folders(path)}, shards: _damage_of_shards(shards)}


def _damage(folder: Path) -> str | None:
    files.name_strangers(folder)
    return files.damage(folder)


def _damage_of_shards(folder: Path) -> str | None:
    files.name_strangers(folder, listed)
    try:
        return Shards.open(folder).damage()
    except UserError as error:
        return error.mistakes[0].removeprefix(f"{folder}: ")

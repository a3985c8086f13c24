"""Is what lies on disk as it was written?

In: a run, a checkpoint or snapshot, or a folder of shards.  Out: for each folder what is wrong with it, or None.
"""

from __future__ import annotations

from pathlib import Path

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.model.folder import RUN, data_of_run, kept_folders
from hornbook.shards.format import Shards, is_shards


def verify(path: Path) -> dict[Path, str | None]:
    if is_shards(path):
        return {path: _damage_of_shards(path)}
    if (path / files.MANIFEST).is_file():
        return {path: files.damage(path)}
    if not (path / RUN).is_file():
        raise UserError(f"{path}: neither a run, nor a checkpoint, nor shards; nothing says how it should be")
    found = {kept: files.damage(kept) for kept in kept_folders(path)}
    shards = data_of_run(path)
    return found | {shards: _damage_of_shards(shards)}


def _damage_of_shards(folder: Path) -> str | None:
    try:
        return Shards.open(folder).damage()
    except UserError as error:
        return error.mistakes[0].removeprefix(f"{folder}: ")

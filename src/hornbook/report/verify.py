"""Is what lies on disk as it was written?

In: a run, a checkpoint or snapshot, or a folder of shards.  Out: for each folder, and for a run's record, what is wrong
with it, or None. What lies there and is not ours is named, which is no damage.
"""

from __future__ import annotations

from pathlib import Path

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.runs.folder import RunFolder, strangeness
from hornbook.shards.format import Shards, is_shards, listed


def verify(path: Path) -> dict[Path, str | None]:
    if is_shards(path):
        return {path: _damage_of_shards(path)}
    if (path / files.MANIFEST).is_file():
        return {path: _damage(path)}
    run = RunFolder(path)
    if not run.has_record():
        raise UserError(f"{path}: neither a run, nor a checkpoint, nor shards; nothing says how it should be")
    record = run.record()
    edited = "was edited since it was written" if record.edited else None
    found = {run.record_file: edited} if record.edited is not None else {}
    kept = {each: _damage(each) or strangeness(each, record.run_id) for each in run.kept()}
    return {**found, **kept, record.shards: _damage_of_shards(record.shards)}


def _damage(folder: Path) -> str | None:
    files.name_strangers(folder)
    return files.damage(folder)


def _damage_of_shards(folder: Path) -> str | None:
    files.name_strangers(folder, listed)
    try:
        return Shards.open(folder).damage()
    except UserError as error:
        return error.mistakes[0].removeprefix(f"{folder}: ")

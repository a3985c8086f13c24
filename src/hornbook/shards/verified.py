"""Files that were read whole before, and found as they were written.

In: a folder, and the sha256 of its files.  Out: the name of one that has changed. Beside each hash that was right it
is noted, in the cache, which size and times the file had: as long as it has them it is not read again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hornbook.base import files
from hornbook.base.console import count
from hornbook.base.errors import HornbookError, UserError
from hornbook.base.ours import with_own_hash

NOTES = "verified.json"
LONG_READING_BYTES = 1 << 30


def changed(
    folder: Path, hashes: Mapping[str, str], whole: bool = False, say: Callable[[str], object] = lambda _: None
) -> str | None:
    """The first file whose bytes are not those of its hash; with `whole`, every byte of all is read."""
    known = {} if whole else (_notes() or {}).get(str(folder.resolve()), {})
    found = {name: [*_facts(folder / name), digest] for name, digest in hashes.items()}
    to_read = [name for name in hashes if known.get(name) != found[name]]
    size = sum(found[name][0] for name in to_read)
    if size > LONG_READING_BYTES:
        say(f"comparing {count(float(size))} bytes of {folder} with their hashes")
    for name in to_read:
        if files.sha256(folder / name) != hashes[name]:
            _note(folder, None)
            return name
    if to_read:
        _note(folder, found)
    return None


def note_written(folder: Path, hashes: Mapping[str, str]) -> None:
    """These files have just been written, and hashed on the way."""
    _note(folder, {name: [*_facts(folder / name), digest] for name, digest in hashes.items()})


def _facts(path: Path) -> list[Any]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]  # a copy keeps its first two times, not the last


def _notes() -> dict[str, Any] | None:
    """By folders; None where the file is not as we wrote it."""
    path = files.home() / NOTES
    try:
        notes = files.read_json(path) if os.path.lexists(path) else with_own_hash({"folders": {}})
        return dict(notes["folders"]) if files.is_unchanged(notes) else None
    except (UserError, KeyError, TypeError, ValueError):
        return None


def _note(folder: Path, facts: dict[str, Any] | None) -> None:
    """Where that cannot be kept, the files are read again the next time."""
    path, notes = files.home() / NOTES, _notes()
    with contextlib.suppress(HornbookError, OSError):
        files.make_folder(path.parent)
        if notes is None:
            files.set_aside(path, "is not as Hornbook wrote it")
        kept = {place: each for place, each in (notes or {}).items() if Path(place).is_dir()}
        kept.pop(str(folder.resolve()), None)
        if facts is not None:
            kept[str(folder.resolve())] = facts
        files.write_json(path, with_own_hash({"folders": kept}))

"""A stream laid down.

In: blocks of bytes that come only once, or only in order.  Out: a file in the cache that can be read again and from any
place, for as long as it is needed.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from hornbook.base import files, ours
from hornbook.base.errors import UserError
from hornbook.base.room import LARGER_DISK, Room
from hornbook.base.unfinished import AGAIN, BinaryWriter

SECONDS_TO_LOCK = 60.0


@contextlib.contextmanager
def spooled(blocks: Iterable[bytes], name: str, ending: str = "") -> Iterator[tuple[Path, str]]:
    """A stream that must be read twice, or not from its beginning, as a file in the cache: its path and sha256. It is
    deleted on leaving. `name` is what its user calls it."""
    folder = files.make_folder(files.home() / "spool")
    # A name of its own in any company: where containers share a cache, process numbers do not tell them apart.
    path = folder / ours.hidden(ours.SPOOLED, f"{uuid.uuid4().hex[:12]}{ending}", by_this_process=True)
    with _begun(path):
        try:
            with files.disk_trouble_named(path, AGAIN):
                digest = _written(blocks, name, path)
            yield path, digest
        finally:
            files.remove(path)


def _written(blocks: Iterable[bytes], name: str, path: Path) -> str:
    room = Room(path.parent)
    allowed = files.free_bytes(path.parent) // 2  # what becomes of it needs as much
    writer = BinaryWriter(path)
    try:
        for block in blocks:
            room.ask(len(block), name, LARGER_DISK)
            writer.write(block)
            if writer.bytes_written > allowed:
                raise UserError(
                    f"a stream of more than {allowed >> 20:,} MB, half of the room for it; "
                    "set HORNBOOK_HOME to a larger disk"
                )
        return writer.close()
    finally:
        writer.abandon()


@contextlib.contextmanager
def _begun(path: Path) -> Iterator[None]:
    """A new file, locked until its process leaves or dies. It gets its name when it is locked."""
    _remove_abandoned(path.parent)
    unlocked = path.with_name(ours.hidden(ours.STAGED, path.name, by_this_process=True))
    with files.disk_trouble_named(path, AGAIN):
        lock = files.open_to_write(unlocked, "xb")
    with lock:
        files.take_lock(lock, wait=False, shared=True)  # HDF5 shares it while it reads
        files.rename(unlocked, path)
        yield


def _remove_abandoned(folder: Path) -> None:
    """What processes left that were killed: nobody has it locked, or got so far as to lock it."""
    for old in folder.iterdir():
        told = ours.read_hidden(old.name)
        if told is None or told.kind not in (ours.SPOOLED, ours.STAGED) or told.is_at_work():
            continue
        with contextlib.suppress(OSError), files.open_to_write(old, "r+b") as file:  # it may be gone by now
            age = time.time() - os.fstat(file.fileno()).st_mtime
            if (told.kind == ours.SPOOLED or age > SECONDS_TO_LOCK) and files.take_lock(file, wait=False):
                files.remove(old)

"""A stream laid down.

In: blocks of bytes that come only once, or only in order.  Out: a file in the cache that can be read again and from any
place, for as long as it is needed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from hornbook.base import files, ours
from hornbook.base.errors import UserError
from hornbook.base.unfinished import KEEP_SECONDS, BinaryWriter

_numbers = itertools.count()


@contextlib.contextmanager
def spooled(blocks: Iterable[bytes], ending: str = "") -> Iterator[tuple[Path, str]]:
    """A stream that must be read twice, or not from its beginning, as a file in the cache: its path and sha256. It is
    deleted on leaving."""
    folder = files.make_folder(files.home() / "spool")
    _remove_abandoned(folder)
    path = folder / ours.hidden(ours.SPOOLED, f"{next(_numbers)}{ending}", by_this_process=True)
    allowed = files.free_bytes(folder) // 2
    with files.disk_trouble_named(path):
        writer = BinaryWriter(path)
        try:
            for block in blocks:
                writer.write(block)
                if writer.bytes_written > allowed:
                    raise UserError(
                        f"a stream of more than {allowed >> 20:,} MB, half of the room for it; "
                        "set HORNBOOK_HOME to a larger disk"
                    )
            digest = writer.close()
        except BaseException:
            writer.abandon()
            files.remove(path)
            raise
    try:
        yield path, digest
    finally:
        files.remove(path)


def _remove_abandoned(folder: Path) -> None:
    """Streams of processes that were killed; another one's may go away at any moment."""
    for old in folder.iterdir():
        told = ours.read_hidden(old.name)
        if told is None or told.kind != ours.SPOOLED or told.process == os.getpid() or told.is_at_work():
            continue
        with contextlib.suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > KEEP_SECONDS:
                files.remove(old)

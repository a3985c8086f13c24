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

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.base.unfinished import KEEP_SECONDS, BinaryWriter

_numbers = itertools.count()


@contextlib.contextmanager
def spooled(blocks: Iterable[bytes], ending: str = "") -> Iterator[tuple[Path, str]]:
    """A stream that must be read twice, or not from its beginning, as a file in the cache: its path and sha256. It is
    deleted on leaving."""
    folder = files.make_folder(files.home() / "spool")
    for old in folder.iterdir():  # left by a process that was killed
        if time.time() - old.stat().st_mtime > KEEP_SECONDS:
            files.remove(old)
    path = folder / f"{os.getpid()}-{next(_numbers)}{ending}"
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

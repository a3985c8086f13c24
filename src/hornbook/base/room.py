"""How far a disk may be filled.

In: a folder that is about to hold much.  Out: leave to write so many bytes more, or one line that says why not.
Whoever fills a disk to its last byte stops everything else on it, itself included.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from hornbook.base import files
from hornbook.base.console import count
from hornbook.base.errors import MachineError

LARGER_DISK = "make room, or choose a larger disk (HORNBOOK_HOME, --out)"
LEFT_FREE_BYTES = 2_000_000_000
LEFT_FREE_SHARE = 0.05
# Where less than that is free already.
MOST_OF_LITTLE = 0.1


class Room:
    """All of the free space but 2 GB or a twentieth of the disk; where less is free, a tenth of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        free = files.free_bytes(folder)
        whole = shutil.disk_usage(folder).total
        self._stays_free = int(min(LEFT_FREE_BYTES, LEFT_FREE_SHARE * whole, (1 - MOST_OF_LITTLE) * free))

    def ask(self, size: float, where: str, mend: str) -> None:
        """Before so much is written; others write too, so each time what is free is looked at again."""
        free = files.free_bytes(self._folder)
        if size > free - self._stays_free:
            raise MachineError(
                f"{where}: {count(size)} more bytes do not fit on the disk, with {count(float(free))} free and "
                f"{count(float(self._stays_free))} to stay so; {mend}"
            )

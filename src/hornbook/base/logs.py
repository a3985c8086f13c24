"""What happened, line by line.

In: entries, one after another.  Out: a file of JSON lines that only grows, except that a resumed run cuts it back to
where its checkpoint was.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from hornbook.base import files


class Log:
    """A log that is open; with `keep_bytes`, what it holds up to there stays."""

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        self.path = path
        files.make_folder(path.parent)
        with files.disk_trouble_named(path):
            if keep_bytes is not None and path.exists():
                # Not more than there is, or a log that someone cut would be filled up with zeros.
                files.truncate(path, min(keep_bytes, path.stat().st_size))
            self._file = files.open_to_write(path, "ab" if keep_bytes is not None else "wb", buffering=0)

    def write(self, entry: dict[str, Any]) -> None:
        with files.disk_trouble_named(self.path):
            files.append(self._file, self.path, json.dumps(entry, ensure_ascii=False).encode() + b"\n")

    def sync(self) -> int:
        """Put all lines safely on the disk, and tell how many bytes they are."""
        with files.disk_trouble_named(self.path):
            files.sync(self._file, self.path)
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; a last line cut off by a crash is passed over."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                entries.append(entry)
    return entries

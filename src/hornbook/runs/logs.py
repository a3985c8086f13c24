"""What happened, line by line.

In: entries, one after another.  Out: a file of JSON lines that only grows, except that a resumed run cuts it back to
where its checkpoint was; read whole, or followed as it grows.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from hornbook.base import files

# What was called otherwise in earlier versions.
RENAMED = {"gradient_length": "grad_norm"}
# Two lines or more: each tells the time, which no line that takes its place repeats.
LOOKED_AT_AGAIN = 512


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
        self.length = self._file.tell()
        """Of all lines, in bytes."""

    def write(self, entry: dict[str, Any]) -> None:
        """All of a line or, where the disk does not take it, none of it: it may be written again."""
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with files.disk_trouble_named(self.path):
            try:
                files.append(self._file, self.path, line)
            except OSError:
                with contextlib.suppress(OSError):
                    files.truncate(self.path, self.length)
                raise
        self.length += len(line)

    def sync(self) -> int:
        """Put all lines safely on the disk, and tell how many bytes they are."""
        with files.disk_trouble_named(self.path):
            files.sync(self._file, self.path)
        return self.length

    def close(self) -> None:
        self._file.close()


class NoLog:
    """The log of a process that leaves it to another to write."""

    length = 0

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        self.path = path

    def write(self, entry: dict[str, Any]) -> None:
        pass

    def sync(self) -> int:
        return 0

    def close(self) -> None:
        pass


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; a last line cut off by a crash is passed over."""
    if not path.exists():
        return []
    return _entries(path.read_bytes())


def last_entries(path: Path, at_most: int, naming: str = "") -> list[dict[str, Any]]:
    """Those in the last so many bytes of a log, however long it is, that name something."""
    return _entries_at(path, -at_most, at_most, naming.encode())


def entries_from(path: Path, begin: int, at_most: int) -> list[dict[str, Any]]:
    """Those in so many bytes of a log, from a byte on."""
    return _entries_at(path, begin, at_most)


def _entries_at(path: Path, begin: int, at_most: int, naming: bytes = b"") -> list[dict[str, Any]]:
    """Half a line at either end is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begin if begin >= 0 else size + begin, 0))
            lines = file.read(at_most).split(b"\n")
            return _entries(b"\n".join(line for line in lines if naming in line))  # to read JSON takes most of the time
    except OSError:
        return []


def evaluations(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those on a run's way, and last the one of all of the text, where those saw a part."""
    found = [each for each in entries if each.get("val_loss") is not None]
    final = [each for each in entries if each.get("final_val_loss") is not None]
    return found + [{name.removeprefix("final_"): value for name, value in each.items()} for each in final[-1:]]


def by_step(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each step, with what was evaluated after it."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in entries:
        rows.setdefault(entry["step"], {}).update(entry)
    return [rows[step] for step in sorted(rows)]


class Following:
    """A log that another process writes: what came since the last look, and whether it was cut back meanwhile."""

    def __init__(self, path: Path, from_byte: int = 0) -> None:
        self._path = path
        self._read = from_byte
        self._last = b""  # the end of what was read, by which a log is known again

    def more(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether what was told before holds no longer, and the entries since; of a log that begins anew, all."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._read - len(self._last))
                known = file.read(len(self._last)) == self._last
                if not known:
                    self._read, self._last = 0, b""
                    file.seek(0)
                data = file.read()
        except OSError:
            known, data = self._read == 0, b""
            self._read, self._last = 0, b""
        whole = data[: data.rfind(b"\n") + 1]  # the last line may still be on its way
        self._read += len(whole)
        self._last = (self._last + whole)[-LOOKED_AT_AGAIN:]
        return not known, _entries(whole)


def _entries(data: bytes) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                entries.append({RENAMED.get(str(name), str(name)): value for name, value in entry.items()})
    return entries

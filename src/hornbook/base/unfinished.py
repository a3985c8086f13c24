"""Work that outlives the process that began it.

In: pieces of a file, or of a folder, over several tries and processes.  Out: the whole under its final name. Until
then it has a name of its own beside that, from which a later process goes on; one process at a time is at it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from hornbook.base import files, ours

KEEP_SECONDS = 7 * 24 * 3600
AGAIN = "run the same command again"


@contextlib.contextmanager
def turn_at(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """One at a time makes the file at `path`; whoever comes second calls `waiting`, and waits."""
    lock = path.with_name(f".lock-{path.name}")
    with files.disk_trouble_named(path), files.open_to_write(lock, "ab") as file:
        if not files.take_lock(file, wait=False):
            waiting()
            files.take_lock(file, wait=True)
        yield


class BinaryWriter:
    """A large file written piece by piece, hashed on the way; one that a crash cut short goes on after `keep_bytes`."""

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        self.path = path
        self.bytes_written = keep_bytes
        self._hash = hashlib.sha256()
        if keep_bytes:
            files.truncate(path, keep_bytes)
            files.hash_file(path, self._hash)
        self._file = files.open_to_write(path, "ab" if keep_bytes else "wb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        files.append(self._file, self.path, data)
        self._hash.update(data)
        self.bytes_written += len(data)

    def sync(self) -> int:
        """Put what was written safely on the disk; how many bytes it is."""
        files.sync(self._file, self.path)
        return self.bytes_written

    def close(self) -> str:
        """Put it safely on the disk; the sha256 of its bytes."""
        self.sync()
        self._file.close()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        self._file.close()


@contextlib.contextmanager
def unfinished_folder(final: Path, state: str, wait: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """A folder beside `final` to fill; `finish_folder` gives it its name.

    It stays after a failure once it holds a file `state`, from which the next one can go on. One process at a time
    has it: another is told so by `wait`, and gets its turn when the first one is done."""
    files.make_folder(final.parent)
    place = final.with_name(ours.hidden(ours.UNFINISHED, final.name))
    with files.disk_trouble_named(final, AGAIN), _turn_in(place, wait):
        files.remove_leftovers(place)
        files.restore_replaced(final)
        try:
            yield place
        finally:
            if place.is_dir() and not (place / state).exists():
                with contextlib.suppress(OSError):
                    files.remove(place)


@contextlib.contextmanager
def beside_others(final: Path) -> Iterator[Path | None]:
    """The folder that becomes `final`, for all who add to it what is in nobody's way. None where it is not there yet,
    or not any more, or somebody has it alone."""
    place = final.with_name(ours.hidden(ours.UNFINISHED, final.name))
    with contextlib.ExitStack() as stack, files.disk_trouble_named(final, AGAIN):
        if place.is_dir():
            with contextlib.suppress(FileNotFoundError):
                file = stack.enter_context(files.open_to_write(place / files.LOCK, "ab"))
                if files.take_lock(file, wait=False, shared=True) and _is_still(file, place / files.LOCK):
                    yield place
                    return
        yield None


def remove_abandoned(folder: Path, spared: Path) -> None:
    """Delete what was left unfinished in `folder` and nobody has touched for a week: where the text has changed since,
    nobody will go on with it. What would become `spared` stays."""
    for place in folder.iterdir() if folder.is_dir() else ():
        told = ours.read_hidden(place.name)
        if told is None or told.kind != ours.UNFINISHED or told.name == spared.name:
            continue
        with contextlib.suppress(OSError):
            last = max(path.stat().st_mtime for path in (place, *place.iterdir()))
            if time.time() - last <= KEEP_SECONDS:
                continue
            with files.open_to_write(place / files.LOCK, "ab") as file:
                if files.take_lock(file, wait=False):
                    files.remove(place)


def empty_unfinished(place: Path) -> None:
    """Begin anew."""
    for path in place.iterdir():
        if path.name != files.LOCK:
            files.remove(path)


def finish_folder(
    place: Path, final: Path, state: str, name: str, manifest: dict[str, Any], known_of: ours.Listed
) -> None:
    """An unfinished folder is done: its manifest is written last, under `name`, with its own hash. A folder before it
    that is `known_of` to be ours is replaced."""
    files.refuse_to_replace(final, known_of)
    files.sync_files(place)
    files.write_manifest(place / name, manifest)
    for path in (place / state, place / files.LOCK):
        files.remove(path)
    files.take_name(place, final, known_of)


@contextlib.contextmanager
def _turn_in(place: Path, wait: Callable[[], object]) -> Iterator[None]:
    """The lock lies in the folder, so that it goes with it."""
    while True:
        files.make_folder(place)
        try:
            file = files.open_to_write(place / files.LOCK, "ab")
        except FileNotFoundError:  # the one before has just finished, and the folder has its name
            continue
        except OSError:
            if not any(place.iterdir()):
                with contextlib.suppress(OSError):
                    files.remove(place)
            raise
        with file:
            if not files.take_lock(file, wait=False):
                wait()
                files.take_lock(file, wait=True)
            if _is_still(file, place / files.LOCK):
                yield
                return


def _is_still(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one at a path: who waited may hold the lock of a folder that is gone from there."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False

"""Everything that Hornbook writes goes through here.

In: bytes, texts, or a staging folder that a library fills.  Out: files that are either whole or absent.
A file is written beside its final name, fsynced, renamed, and its parent fsynced. A folder is staged the same way,
with a MANIFEST.json (size and sha256 of every file, and its own hash) written last. Only what proves to be ours (see
base/ours.py) is ever replaced or removed. Each step that changes the disk passes through `_step`, so that a test can
kill the process at every single one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from hornbook.base import ours
from hornbook.base.console import warn
from hornbook.base.disk import disk_trouble_named as disk_trouble_named
from hornbook.base.disk import elsewhere as elsewhere
from hornbook.base.disk import free_bytes as free_bytes
from hornbook.base.disk import home as home
from hornbook.base.errors import UserError
from hornbook.base.ours import MANIFEST as MANIFEST
from hornbook.base.ours import Listed, in_the_way, listed
from hornbook.base.ours import damage as damage
from hornbook.base.ours import is_unchanged as is_unchanged
from hornbook.base.ours import manifest_notes as manifest_notes
from hornbook.base.reading import hash_file as hash_file
from hornbook.base.reading import read_json as read_json
from hornbook.base.reading import read_small as read_small
from hornbook.base.reading import sha256 as sha256

Known = Mapping[str, dict[str, Any]]
LOCK = ".lock"
TRIES_TO_LOCK = 10
T = TypeVar("T")


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`, at once, in place of what stood there; that must be ours."""
    staged = _staging_for(path)
    with disk_trouble_named(path):
        try:
            with opened(staged, "wb") as file:
                _step("write", path, lambda: file.write(data))
            rename(staged, path)
        except BaseException:
            with contextlib.suppress(OSError):
                staged.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if not is_utf8(text):  # a file's name need not be; in JSON's own spelling it comes back as it was
        text = json.dumps(value, indent=2)
    write_text(path, text + "\n")


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def make_folder(path: Path) -> Path:
    with disk_trouble_named(path):
        try:
            _step("mkdir", path, lambda: path.mkdir(parents=True, exist_ok=True))
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{path}: a file stands where a folder should; {elsewhere(path)}") from None
        except PermissionError:
            raise UserError(f"{path}: no permission to write here; {elsewhere(path)}") from None
    return path


@contextlib.contextmanager
def staged_folder(
    final: Path, notes: dict[str, Any] | None = None, aside: bool = False, known: Known | None = None
) -> Iterator[Path]:
    """A folder to fill in peace; on leaving it is fsynced, hashed, given its MANIFEST.json and its final name. Where
    that is taken by what is not ours, see `take_name`. Of the `known` files somebody has done so."""
    make_folder(final.parent)
    staging = _staging_for(final)
    with disk_trouble_named(final):
        try:
            remove(staging)
            make_folder(staging)
            yield staging
            _seal(staging, notes or {}, known or {})
            take_name(staging, final, aside=aside)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(staging)
            raise


def refuse_to_replace(final: Path, known_of: Listed = listed) -> None:
    """Ask before long work, rather than at its end, whether a folder may have this name."""
    if not final.name or final.name == "..":
        raise UserError(f"{final}: not a name for a new folder; {elsewhere(final)}")
    if (why := in_the_way(final, known_of)) is not None:
        raise UserError(f"{final}: {why}; {elsewhere(final)}, or move it away")


def take_name(staging: Path, final: Path, known_of: Listed = listed, aside: bool = False) -> None:
    """A folder that is whole gets its name. It cannot be replaced at once: until the new one has the name, the old one
    is whole under another. What is not ours is refused; where the name is one that only we give, it is set aside."""
    replaced = final.with_name(ours.hidden(ours.REPLACED, final.name))
    try:
        _restore(replaced)
        if aside:
            set_aside_strangers(final, known_of)
        refuse_to_replace(final, known_of)
        if final.exists() and any(final.iterdir()):
            rename(final, replaced)
        rename(staging, final)
    except BaseException:
        with contextlib.suppress(OSError):
            _restore(replaced)
        raise
    sync_folder(final.parent)
    remove(replaced)


def set_aside_strangers(path: Path, known_of: Listed = listed) -> None:
    if (why := in_the_way(path, known_of)) is not None:
        set_aside(path, why)


def set_aside(path: Path, why: str) -> None:
    """Make way for what only we call so: what stands there, and is not ours, is kept under another name."""
    kept, number = path.with_name(f"{path.name}.set-aside"), 1
    while os.path.lexists(kept):
        number += 1
        kept = path.with_name(f"{path.name}.set-aside-{number}")
    rename(path, kept)
    warn(f"{path}: {why}; it is kept as {kept.name}")


def name_strangers(folder: Path, known_of: Listed = listed) -> None:
    """Tell in one line what lies in a folder of ours and is not ours; it does no harm."""
    known = known_of(folder)
    if known is not None and (others := ours.strangers(folder, known)):
        warn(f"{folder}: Hornbook did not write {ours.named(others)}; passed over")


@contextlib.contextmanager
def staged_file(final: Path, replace: bool = False) -> Iterator[Path]:
    """A path for a library that writes one file by itself; on leaving it is fsynced and takes its final name. To
    replace a file is for who knows that it is ours."""
    make_folder(final.parent)
    staging = _staging_for(final)
    with disk_trouble_named(final):
        try:
            yield staging
            sync_file(staging)
            if not replace and os.path.lexists(final):
                raise UserError(f"{final}: is there already; choose another --out, or move it away")
            rename(staging, final)
        except BaseException:
            with contextlib.suppress(OSError):
                staging.unlink(missing_ok=True)
            raise
        sync_folder(final.parent)


@contextlib.contextmanager
def locked(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Keep a second process out of a folder; the lock dies with the process that holds it, for which this one waits."""
    with disk_trouble_named(folder), open(folder / LOCK, "ab") as file:
        for _ in range(TRIES_TO_LOCK + round(100 * seconds)):
            if take_lock(file, wait=False):
                with contextlib.suppress(OSError):  # to tell who it is, a full disk need not
                    _step("write", folder / LOCK, lambda: _sign(file))
                break
            time.sleep(0.01)  # who only looks whether it is locked holds it for an instant
        else:
            raise UserError(f"{folder}: another process is at work in it; wait for it, or choose another --out")
        yield


def _sign(file: IO[bytes]) -> None:
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    file.flush()


def holder(folder: Path) -> int | None:
    """The process that has a folder locked, as it told."""
    try:
        return int(read_small(folder / LOCK))
    except (OSError, ValueError, UserError):
        return None


def is_locked(folder: Path) -> bool:
    """Whether a living process keeps others out of a folder."""
    try:
        file = open(folder / LOCK, "rb")  # noqa: SIM115
    except OSError:
        return False
    with file:
        return not take_lock(file, wait=False, shared=True)


def take_lock(file: IO[bytes], wait: bool, shared: bool = False) -> bool:
    try:
        import fcntl  # not on Windows
    except ImportError:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def remove(path: Path) -> None:
    """Delete a file or link that the caller made, a folder in the making, or a sealed folder."""
    if path.is_symlink() or path.is_file():
        _step("unlink", path, path.unlink)
    elif ours.read_hidden(path.name) is not None:
        _delete_folder(path)
    else:
        remove_sealed(path)


def remove_sealed(folder: Path) -> None:
    """Delete of a sealed folder what its manifest lists. The folder first loses its name, so that half of it never
    passes for the whole; but where somebody else's file lies in it, that stays where it is. What is not a sealed
    folder stays as well."""
    known = listed(folder)
    if known is None:
        return
    if others := ours.strangers(folder, known):
        warn(f"{folder}: deleted, but for what Hornbook did not write: {ours.named(others)}")
        _delete_from(folder, known)
    else:
        discarded = folder.with_name(ours.hidden(ours.DISCARDED, folder.name))
        _delete_folder(discarded)
        _step("rename", folder, lambda: os.replace(folder, discarded))
        _delete_folder(discarded)


def _delete_folder(path: Path) -> None:
    while path.is_dir():
        with contextlib.suppress(FileNotFoundError):  # another process deletes it too
            _step("rmtree", path, lambda: shutil.rmtree(path))


def _delete_from(folder: Path, known: set[str]) -> None:
    """The manifest last: until then it proves what is ours."""
    for name in sorted(known, key=lambda name: (name == MANIFEST, name)):
        if (file := folder / name).is_file() or file.is_symlink():
            _step("unlink", file, file.unlink)
    for inner in sorted(folder.rglob("*"), reverse=True):
        if inner.is_dir() and not inner.is_symlink() and not any(inner.iterdir()):
            _step("rmdir", inner, inner.rmdir)


def remove_leftovers(folder: Path, shared: bool = False) -> None:
    """Delete what a crash left half done, and give a folder its name back that was about to be replaced. In a folder
    that is shared with other processes, what may still be worked on is spared."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (told := ours.read_hidden(path.name)) is None:
            continue
        if told.kind == ours.REPLACED:
            if not shared:  # or whoever has its turn at that name gives it back
                _restore(path)
        elif told.kind == ours.UNFINISHED:
            if not shared:  # or its work is to be gone on with
                remove(path)
        elif told.kind in (ours.STAGED, ours.DISCARDED) and not (shared and told.is_at_work()):
            remove(path)


def restore_replaced(final: Path) -> None:
    """Give a folder its name back that was about to be replaced when a process died, under the lock on that name."""
    _restore(final.with_name(ours.hidden(ours.REPLACED, final.name)))


def _restore(replaced: Path) -> None:
    told = ours.read_hidden(replaced.name)
    final = replaced.with_name(told.name) if told is not None else replaced
    if os.path.lexists(final):
        remove(replaced)
    elif replaced.exists():
        rename(replaced, final)


def read_if_small(path: Path, limit: int) -> bytes | None:
    """A file of fewer bytes than `limit`, and of some. To open one as a stream takes longer than to read it."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(handle).st_size
            return os.read(handle, size) or None if size < limit else None
        finally:
            os.close(handle)
    return None


def _staging_for(final: Path) -> Path:
    # One name for each process, so that two that make the same thing do not meet. The ending stays last: libraries
    # choose a format by it.
    return final.with_name(ours.hidden(ours.STAGED, final.name, by_this_process=True))


def _step(kind: str, path: Path, act: Callable[[], T]) -> T:
    """One operation that changes the disk; a test replaces this to crash before, in or after it."""
    return act()


def open_to_write(path: Path, mode: str, buffering: int = -1) -> IO[bytes]:
    file: IO[bytes] = _step("open", path, lambda: open(path, mode, buffering))  # noqa: SIM115
    return file


def append(file: IO[bytes], path: Path, data: bytes | memoryview) -> None:
    """To a file that is open without a buffer, which may take less at once than it is given."""

    def write_all() -> None:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]

    _step("append", path, write_all)


def truncate(path: Path, size: int) -> None:
    _step("truncate", path, lambda: os.truncate(path, size))


def rename(path: Path, final: Path) -> None:
    _step("rename", final, lambda: os.replace(path, final))


def sync(file: IO[bytes], path: Path) -> None:
    """Put what was written to an open file safely on the disk."""
    _step("fsync", path, lambda: os.fsync(file.fileno()))


@contextlib.contextmanager
def opened(path: Path, mode: str) -> Iterator[IO[bytes]]:
    file = open_to_write(path, mode)
    with file:
        yield file
        file.flush()
        sync(file, path)


def _seal(folder: Path, notes: dict[str, Any], known: Known) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sync_files(folder, known)
    }
    write_manifest(folder / MANIFEST, {"notes": notes, "files": dict(sorted({**files, **known}.items()))})


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    data = json.dumps(ours.with_own_hash(manifest), indent=2).encode()
    with opened(path, "wb") as file:
        _step("write", path, lambda: file.write(data))
    sync_folder(path.parent)


def sync_files(folder: Path, but: Collection[str] = ()) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in but)
    for path in paths:
        sync_file(path)
    return paths


def sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        sync(file, path)


def sync_folder(path: Path) -> None:
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        _step("fsync", path, lambda: os.fsync(handle))
    finally:
        os.close(handle)

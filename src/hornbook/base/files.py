"""Everything that Hornbook writes goes through here.

In: bytes, texts, or a staging folder that a library fills.  Out: files that are either whole or absent.
A file is written beside its final name, fsynced, renamed, and its parent fsynced. A folder is staged the same way,
with a MANIFEST.json (size and sha256 of every file, and its own hash) written last. Each step that changes the disk
passes through `_step`, so that a test can kill the process at every single one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from hornbook.base.errors import MachineError, UserError

MANIFEST = "MANIFEST.json"
_STAGED = ".staged-"
_DISCARDED = ".discarded-"
_REPLACED = ".replaced-"
UNFINISHED = ".unfinished-"
LOCK = ".lock"
TRIES_TO_LOCK = 10
LARGEST_READ_WHOLE = 256 << 20
_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.EFBIG: "a file may not become so large here; raise the limit (ulimit -f), or choose another disk",
    errno.EIO: "the disk fails; choose another",
    errno.EROFS: "the disk is read-only; choose another",
    errno.EACCES: "no permission to write here; allow it, or choose another folder",
}
_LEFT_BY_THE_DESKTOP = {".DS_Store"}
T = TypeVar("T")


def home() -> Path:
    """Where prepared data and downloads are kept between runs."""
    return Path(os.environ.get("HORNBOOK_HOME") or Path.home() / ".cache" / "hornbook")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, at once."""
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


def read_small(path: Path) -> str:
    """The text of a file that is read whole; one that would fill the memory is refused before that."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST_READ_WHOLE:  # a pipe would be waited for
        raise UserError(f"{path}: not such a file as is read whole ({facts.st_size:,} bytes)")
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from disk, or a UserError that names the file."""
    try:
        value = json.loads(read_small(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: should hold a JSON object")
    return value


def make_folder(path: Path) -> Path:
    with disk_trouble_named(path):
        try:
            _step("mkdir", path, lambda: path.mkdir(parents=True, exist_ok=True))
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{path}: a file stands where a folder should; choose another --out") from None
        except PermissionError:
            raise UserError(f"{path}: no permission to write here; choose another --out") from None
    return path


@contextlib.contextmanager
def staged_folder(final: Path, notes: dict[str, Any] | None = None) -> Iterator[Path]:
    """A folder to fill in peace; on leaving it is fsynced, hashed, given its MANIFEST.json and its final name."""
    with _staged_folder(final) as staging:
        yield staging
        _seal(staging, notes or {})


@contextlib.contextmanager
def _staged_folder(final: Path) -> Iterator[Path]:
    make_folder(final.parent)
    staging = _staging_for(final)
    with disk_trouble_named(final):
        try:
            remove(staging)
            make_folder(staging)
            yield staging
            take_name(staging, final)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(staging)
            raise


def take_name(staging: Path, final: Path) -> None:
    """A folder that is whole gets its name. It cannot be replaced at once: until the new one has the name, the old one
    is whole under another."""
    replaced = final.with_name(_REPLACED + final.name)
    try:
        _restore(replaced)
        if final.exists() or final.is_symlink():
            rename(final, replaced)
        rename(staging, final)
    except BaseException:
        with contextlib.suppress(OSError):
            _restore(replaced)
        raise
    sync_folder(final.parent)
    remove(replaced)


@contextlib.contextmanager
def staged_file(final: Path) -> Iterator[Path]:
    """A path for a library that writes one file by itself; on leaving it is fsynced and takes its final name."""
    make_folder(final.parent)
    staging = _staging_for(final)
    with disk_trouble_named(final):
        try:
            yield staging
            sync_file(staging)
            rename(staging, final)
        except BaseException:
            with contextlib.suppress(OSError):
                staging.unlink(missing_ok=True)
            raise
        sync_folder(final.parent)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a folder; the lock dies with the process that holds it."""
    with disk_trouble_named(folder), open(folder / LOCK, "ab") as file:
        for _ in range(TRIES_TO_LOCK):
            if take_lock(file, wait=False):
                break
            time.sleep(0.01)  # who only looks whether it is locked holds it for an instant
        else:
            raise UserError(f"{folder}: another process is at work in it; wait for it, or choose another --out")
        yield


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
    """Delete a file or folder; a folder first loses its name, so that half of it never passes for the whole."""
    if path.is_symlink() or path.is_file():
        _step("unlink", path, path.unlink)
    elif path.is_dir():
        discarded = path if path.name.startswith(_DISCARDED) else path.with_name(_DISCARDED + path.name)
        if discarded != path:
            if discarded.exists():
                _step("rmtree", discarded, lambda: shutil.rmtree(discarded))
            _step("rename", path, lambda: os.replace(path, discarded))
        _step("rmtree", discarded, lambda: shutil.rmtree(discarded))


def remove_leftovers(folder: Path, shared: bool = False) -> None:
    """Delete what a crash left half done, and give a folder its name back that was about to be replaced. In a folder
    that is shared with other processes, what a live one is working on is spared."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(_REPLACED):
            _restore(path)
        elif path.name.startswith(UNFINISHED):
            if not shared:  # or its work is to be gone on with
                remove(path)
        elif path.name.startswith((_STAGED, _DISCARDED)) and not (shared and _is_at_work(path.name)):
            remove(path)


def _is_at_work(staged: str) -> bool:
    """Whether the process that staged something is another one, and alive."""
    number = staged.removeprefix(_STAGED).partition("-")[0]
    if not number.isdigit() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # it is there, but somebody else's
    return True


def _restore(replaced: Path) -> None:
    final = replaced.with_name(replaced.name.removeprefix(_REPLACED))
    if final.exists():
        remove(replaced)
    elif replaced.exists():
        rename(replaced, final)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in a few words; None when every file is as it was written."""
    try:
        return _damage(folder)
    except FileNotFoundError:
        return "was deleted meanwhile"


def _damage(folder: Path) -> str | None:
    path = folder / MANIFEST
    if folder.is_symlink() or not folder.is_dir():
        return "is not a folder"
    if path.is_symlink():
        return f"{MANIFEST} is a link"
    try:
        manifest = json.loads(read_small(path))
        if not is_unchanged(manifest):
            return f"{MANIFEST} was edited or damaged"
        listed: dict[str, Any] = manifest["files"]
    except FileNotFoundError:
        return f"has no {MANIFEST}: it was never finished"
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    present = {
        each.relative_to(folder).as_posix()
        for each in folder.rglob("*")
        if (each.is_symlink() or not each.is_dir()) and each.name not in _LEFT_BY_THE_DESKTOP
    }
    for name in sorted(present - set(listed) - {MANIFEST}):
        return f"{name} does not belong there"
    for name, facts in sorted(listed.items()):
        file = folder / name
        if name not in present:
            return f"{name} is missing"
        if file.is_symlink():
            return f"{name} is a link"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {facts['bytes']}"
        if sha256(file) != facts["sha256"]:
            return f"{name} has changed since it was written"
    return None


def is_unchanged(manifest: dict[str, Any]) -> bool:
    """Whether a manifest is as it was written, by the hash of itself in it."""
    return bool(manifest["sha256"] == _hash_of_json({key: manifest[key] for key in manifest if key != "sha256"}))


def manifest_notes(folder: Path) -> dict[str, Any]:
    """What was noted in a sealed folder's manifest when it was written."""
    notes = read_json(folder / MANIFEST).get("notes", {})
    return notes if isinstance(notes, dict) else {}


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    hash_file(path, digest)
    return digest.hexdigest()


def hash_file(path: Path, digest: hashlib._Hash) -> None:
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)


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


def free_bytes(path: Path) -> int:
    """Free space on the disk where `path` is, or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def disk_trouble_named(path: Path, go_on: str = "go on (hornbook resume RUN)") -> Iterator[None]:
    """A full or failing disk becomes one line. Libraries hide the cause in their own errors, so those are
    searched."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            what = _DISK_ERRORS[error.errno]
        elif (number := _named_by_a_library(str(error))) is not None:
            what = _DISK_ERRORS[number]
        else:
            raise
        raise MachineError(f"{path}: {what}, then {go_on}: what was saved before is intact") from error


def _named_by_a_library(text: str) -> int | None:
    """The trouble that a library has put into words of its own."""
    for number in (errno.ENOSPC, errno.EFBIG):
        if os.strerror(number) in text or f"os error {number})" in text:
            return number
    return None


def _staging_for(final: Path) -> Path:
    # One name for each process, so that two that make the same thing do not meet. The ending stays last: libraries
    # choose a format by it.
    return final.with_name(f"{_STAGED}{os.getpid()}-{final.name}")


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


def _seal(folder: Path, notes: dict[str, Any]) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sync_files(folder)
    }
    write_manifest(folder / MANIFEST, {"notes": notes, "files": files})


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    data = json.dumps(manifest | {"sha256": _hash_of_json(manifest)}, indent=2).encode()
    with opened(path, "wb") as file:
        _step("write", path, lambda: file.write(data))
    sync_folder(path.parent)


def sync_files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        sync_file(path)
    return paths


def _hash_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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

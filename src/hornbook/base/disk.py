"""The disk: where on it things are kept between runs, and what is wrong with it.

In: a path.  Out: the cache's folder, free space, or one line for a disk that is full, fails, or may not be written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hornbook.base.errors import MachineError

_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.EFBIG: "a file may not become so large here; raise the limit (ulimit -f), or choose another disk",
    errno.EIO: "the disk fails; choose another",
    errno.EROFS: "the disk is read-only; {elsewhere}",
    errno.EACCES: "no permission to write here; allow it, or {elsewhere}",
}


def home() -> Path:
    """Where prepared data and downloads are kept between runs."""
    return Path(os.environ.get("HORNBOOK_HOME") or Path.home() / ".cache" / "hornbook")


def elsewhere(path: Path) -> str:
    """How to have something written to another place than `path`."""
    in_home = Path(os.path.abspath(path)).is_relative_to(Path(os.path.abspath(home())))
    return "set HORNBOOK_HOME to another folder" if in_home else "choose another --out"


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
            what = _DISK_ERRORS[error.errno].format(elsewhere=elsewhere(path))
        elif (number := _named_by_a_library(str(error))) is not None:
            what = _DISK_ERRORS[number].format(elsewhere=elsewhere(path))
        else:
            raise
        raise MachineError(f"{path}: {what}, then {go_on}: what was saved before is intact") from error


def _named_by_a_library(text: str) -> int | None:
    """The trouble that a library has put into words of its own."""
    for number in (errno.ENOSPC, errno.EFBIG):
        if os.strerror(number) in text or f"os error {number})" in text:
            return number
    return None

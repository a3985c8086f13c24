"""How the readers of foreign files refuse one.

In: why, in a few words, from wherever in a file that was noticed.  Out: one line that names the file.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from hornbook.base.errors import UserError


class FormatError(Exception):
    """A file is not what it should be."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """What goes wrong in here is the file's fault."""
    try:
        yield
    except FormatError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def open_file(path: Path) -> BufferedReader:
    """A file to read; never a pipe, which might not end or not begin."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise FormatError("is not a file")
    return path.open("rb")

"""Files are read.

In: a path.  Out: its text, its JSON, or its hash; nothing that would fill the memory.
"""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

from hornbook.base.errors import UserError

LARGEST_READ_WHOLE = 256 << 20


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


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    hash_file(path, digest)
    return digest.hexdigest()


def hash_file(path: Path, digest: hashlib._Hash) -> None:
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)

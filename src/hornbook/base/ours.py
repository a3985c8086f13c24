"""What on the disk did we write, and is it as we wrote it?

In: a path.  Out: the proof, or none. base/files.py asks here before it replaces or removes anything.
A folder proves itself by a manifest that carries its own hash: the files that it lists are ours, whatever else lies
beside them is somebody else's. What is still in the making has no manifest, and proves itself by a mark in its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook.base.errors import UserError
from hornbook.base.reading import read_json, read_small, sha256

MANIFEST = "MANIFEST.json"
STAGED, DISCARDED, REPLACED = "staged", "discarded", "replaced"
UNFINISHED, PARTIAL, SPOOLED, PART = "unfinished", "partial", "spooled", "part"
_HIDDEN = re.compile(r"\.([a-z]+)-(?:p(\d{1,9})-)?([0-9a-f]{8})-(.+)", re.DOTALL)
MOST_NAMED = 3
# What a folder's proof lists: names below it, its manifest among them; None where there is no proof.
Listed = Callable[[Path], "set[str] | None"]


@dataclass(frozen=True)
class Hidden:
    """What a name tells of work in the making."""

    kind: str
    name: str
    process: int | None

    def __str__(self) -> str:
        process = "" if self.process is None else f"p{self.process}-"
        mark = hashlib.sha256(f"hornbook {self.kind} {process}{self.name}".encode(errors="surrogateescape"))
        return f".{self.kind}-{process}{mark.hexdigest()[:8]}-{self.name}"

    def is_at_work(self) -> bool:
        """Whether the process that made it is another one, and alive."""
        if self.process is None or self.process == os.getpid():
            return False
        try:
            os.kill(self.process, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:
            pass  # it is there, but somebody else's
        return True


def hidden(kind: str, name: str, by_this_process: bool = False) -> str:
    """What something is called until it takes its name, or while it is let go of."""
    return str(Hidden(kind, name, os.getpid() if by_this_process else None))


def read_hidden(name: str) -> Hidden | None:
    """What `hidden` called so; None of a name that only looks like that."""
    found = _HIDDEN.fullmatch(name)
    if found is None:
        return None
    kind, process, _, final = found.groups()
    told = Hidden(kind, final, None if process is None else int(process))
    return told if str(told) == name else None


def listed(folder: Path) -> set[str] | None:
    """The files of a sealed folder."""
    manifest = _manifest(folder)
    return None if isinstance(manifest, str) else {MANIFEST, *manifest["files"]}


def strangers(folder: Path, known: Iterable[str]) -> list[str]:
    """What lies in a folder besides the files that are known."""
    return sorted(_present(folder) - set(known))


def named(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join([name[:60] for name in names[:MOST_NAMED]]) + (f" and {more:,} more" if more > 0 else "")


def in_the_way(path: Path, known_of: Listed = listed) -> str | None:
    """Why what stands at a name may not be replaced, in a few words; None where nothing stands there, an empty folder,
    or a folder that is ours and holds nothing else."""
    if path.is_symlink():
        return "is a link"
    if not path.exists():
        return None
    if not path.is_dir():
        return "is a file"
    foreign = strangers(path, known_of(path) or ())
    return f"holds {named(foreign)}, not known to be written by Hornbook" if foreign else None


def damage(folder: Path, unread: Container[str] = ()) -> str | None:
    """What is wrong with a sealed folder, in a few words; None when every file that was written is as it was. Of those
    to be left unread, the size alone is looked at."""
    manifest = _manifest(folder)
    if isinstance(manifest, str):
        return manifest
    try:
        present = _present(folder)
        for name, facts in sorted(manifest["files"].items()):
            file = folder / name
            if name not in present:
                return f"{name} is missing"
            if file.is_symlink():
                return f"{name} is a link"
            if file.stat().st_size != facts["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {facts['bytes']}"
            if name not in unread and sha256(file) != facts["sha256"]:
                return f"{name} has changed since it was written"
    except FileNotFoundError:
        return "was deleted meanwhile"
    return None


def _manifest(folder: Path) -> dict[str, Any] | str:
    """A sealed folder's manifest, or what is wrong with it."""
    path = folder / MANIFEST
    if folder.is_symlink() or not folder.is_dir():
        return "is not a folder"
    if path.is_symlink():
        return f"{MANIFEST} is a link"
    try:
        manifest: dict[str, Any] = json.loads(read_small(path))
        if not is_unchanged(manifest):
            return f"{MANIFEST} was edited or damaged"
        _ = [facts["bytes"] + len(facts["sha256"]) for facts in manifest["files"].values()]
    except FileNotFoundError:
        return f"has no {MANIFEST}: it was never finished"
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    return manifest


def _present(folder: Path) -> set[str]:
    return {each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_symlink() or not each.is_dir()}


def manifest_notes(folder: Path) -> dict[str, Any]:
    """What was noted in a sealed folder's manifest when it was written."""
    notes = read_json(folder / MANIFEST).get("notes", {})
    return notes if isinstance(notes, dict) else {}


def with_own_hash(value: dict[str, Any]) -> dict[str, Any]:
    rest = {key: each for key, each in value.items() if key != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def is_unchanged(value: dict[str, Any]) -> bool:
    """Whether it is as it was written, by the hash of itself in it."""
    return bool(value["sha256"] == with_own_hash(value)["sha256"])

"""What of a folder is read.

In: a folder.  Out: its files of text, or of records, in a fixed order; and of what is left out, how many there are of
each ending. A file without an ending is looked into, whether it is text; so is one of an unknown ending where
`--text.format text` says that such are wanted.
"""

from __future__ import annotations

import codecs
import functools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from hornbook.base.console import warn
from hornbook.base.errors import UserError
from hornbook.base.files import read_if_small
from hornbook.text.documents import TextConfig
from hornbook.text.formats import FORMATS, ending_of, format_of
from hornbook.text.streams import Trouble, compression_of, read_blocks, text_begins

# Folders whose files nobody wrote as text to learn from.
PASSED_OVER = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
SNIFFED_BYTES = 1 << 16
MOST_NAMED = 5
NO_ENDING = "without an ending"
# What stands beside endings among that which is left out, and how one of it is called.
LOCKED = "folders without permission"
UNREADABLE = "folders that cannot be read"
LINKED = "links to folders"
LOST = "links to nothing"
ONE_OF = {
    LOCKED: "folder without permission",
    UNREADABLE: "folder that cannot be read",
    LINKED: "link to a folder",
    LOST: "link to nothing",
}
_warn_once = functools.cache(warn)


def walk(folder: Path, endings: tuple[str, ...], passed_over: set[str] = PASSED_OVER) -> list[Path]:
    """Files below `folder` with one of `endings`, hidden ones left out, sorted by their path on any file system."""
    return [path for path in _files(folder, passed_over, Counter()) if path.name.lower().endswith(endings)]


def files_below(folder: Path, config: TextConfig) -> tuple[tuple[Path, ...], dict[str, int]]:
    """The folder's texts, or its records (.jsonl, .parquet and so on), whichever are more bytes: a README beside data
    is not the data, nor is a table beside sources. And of what is left out, how many there are of which ending."""
    left_out: Counter[str] = Counter()
    kinds: dict[bool, list[tuple[Path, str]]] = {False: [], True: []}
    unknown: dict[str, Path] = {}
    for path in _files(folder, PASSED_OVER, left_out):
        ending, chosen = ending_of(path.name), format_of(path)
        if chosen is not None:
            wanted = config.format in (None, chosen.name)
        else:
            wanted = config.format == "text" or (config.format is None and not ending)
            wanted = wanted and is_text(path)
            unknown.setdefault(ending, path)
        if wanted:
            kinds[chosen is not None and chosen.records].append((path, ending or NO_ENDING))
        else:
            left_out[ending or NO_ENDING] += 1
    most = bool(kinds[True])
    if kinds[False] and kinds[True]:
        most = max(kinds, key=lambda kind: (sum(path.stat().st_size for path, _ in kinds[kind]), len(kinds[kind])))
    beside = Counter(ending for _, ending in kinds[not most])
    text_in_sight = [] if config.format else [each for each in sorted(unknown) if each and is_text(unknown[each])]
    told = _told(left_out + beside, list(beside), text_in_sight)
    if not kinds[most]:
        kind = f"{FORMATS[config.format].endings[0]} or other file of text" if config.format else "file of text"
        raise UserError(f"{folder}: no {kind} in it; {told or 'name one that has, or a file'}")
    if told:
        _warn_once(f"{folder}: {len(kinds[most]):,} files are read; {told}")
    return tuple(path for path, _ in kinds[most]), dict(sorted((left_out + beside).items()))


def _told(left_out: Mapping[str, int], beside: Sequence[str], unknown: Sequence[str]) -> str:
    """`not read: 41 .foo, 3 .docx, 1 folder without permission (to read .foo: --text.format text)`, the endings of
    which there are most; nothing where nothing is left out."""
    if not left_out:
        return ""
    endings = sorted(left_out, key=lambda each: (each in ONE_OF, -left_out[each], each))
    if more := endings[MOST_NAMED:]:
        endings = endings[:MOST_NAMED]
    named = [f"{left_out[each]:,} {ONE_OF.get(each, each) if left_out[each] == 1 else each}" for each in endings]
    named += [f"{sum(left_out[each] for each in more):,} more"] if more else []
    ways = {"a pattern in quotes": beside, "--text.format text": unknown}
    hints = [f"{', '.join(each[:3])}: {way}" for way, each in ways.items() if each]
    return f"not read: {', '.join(named)}" + (f" (to read {'; '.join(hints)})" if hints else "")


def is_text(path: Path) -> bool:
    """Whether the first block of a file, decompressed, is UTF-8 without zeros."""
    try:
        head = None if compression_of(path.name) else read_if_small(path, SNIFFED_BYTES)
        if head is None:
            head = next(read_blocks(path), b"")[:SNIFFED_BYTES]
        codecs.getincrementaldecoder("utf-8")().decode(text_begins(head))
    except (Trouble, UnicodeDecodeError):
        return False
    return True


def _files(folder: Path, passed_over: set[str], left_out: Counter[str]) -> list[Path]:
    """All files below a folder but hidden ones, sorted by their path on any file system; what is neither a file nor a
    folder that can be read is counted."""
    found: list[str] = []
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name not in passed_over:
                            waiting.append(entry.path)
                    elif entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path):
                        found.append(entry.path)
                    elif entry.is_symlink():
                        left_out[LINKED if os.path.isdir(entry.path) else LOST] += 1
        except PermissionError:
            left_out[LOCKED] += 1
        except OSError:
            left_out[UNREADABLE] += 1
    return [Path(path) for path in sorted(found, key=lambda path: path.replace(os.sep, "/"))]

"""Files become documents.

In: a file, or a folder that is walked in a fixed order.  Out: `Document`s: a name and its text, UTF-8, line ends as
`\\n`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hornbook.base.errors import UserError

TEXT_ENDINGS = (".txt", ".md", ".py")
# Folders whose files nobody wrote as text to learn from.
PASSED_OVER = {"__pycache__", "node_modules", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Document:
    name: str
    text: str


@dataclass(frozen=True)
class Source:
    """Text that is there: a name, and its files in the order in which they are read."""

    name: str
    root: Path
    files: tuple[Path, ...]

    def documents(self) -> Iterator[Document]:
        """Every file that is not empty, one after another; at least one, or a UserError."""
        found = False
        for path in self.files:
            text = read_text(path)
            if text:
                found = True
                yield Document(path.relative_to(self.root).as_posix(), text)
        if not found:
            where = self.files[0] if len(self.files) == 1 else self.root
            raise UserError(f"{where}: empty; there is no text to learn from")

    def bytes_on_disk(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def signature(self) -> str:
        """Changes when a file is added, removed or edited; read from the folder entries, so it is cheap."""
        digest = hashlib.sha256()
        for path in self.files:
            facts = path.stat()
            line = f"{path.relative_to(self.root).as_posix()}|{facts.st_size}|{facts.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))  # a file's name need not be UTF-8
        return digest.hexdigest()


def source_from_path(path: Path) -> Source:
    """The text at `path`: one file of any ending, or all text files below a folder."""
    path = path.expanduser()
    if path.is_file():
        return Source(path.stem, path.parent, (path,))
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder, and no corpus of that name (see: hornbook corpora)")
    files = tuple(walk(path, TEXT_ENDINGS))
    if not files:
        raise UserError(f"{path}: no {', '.join(TEXT_ENDINGS)} files in this folder; name one that has them, or a file")
    return Source(path.resolve().name, path, files)


def joined(sources: list[Source]) -> Source:
    """Several sources, one after another."""
    if len(sources) == 1:
        return sources[0]
    root = Path(os.path.commonpath([source.root.resolve() for source in sources]))
    return Source(
        "+".join(source.name for source in sources),
        root,
        tuple(p.resolve() for s in sources for p in s.files),
    )


def walk(folder: Path, endings: tuple[str, ...], passed_over: set[str] = PASSED_OVER) -> list[Path]:
    """Files below `folder` with one of `endings`, hidden ones left out, sorted by their path on any file system."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if each not in passed_over and not each.startswith(".")]
        found += [Path(place, name) for name in names if name.endswith(endings) and not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(folder).as_posix())


def read_text(path: Path) -> str:
    """The text of a file, without byte-order mark, or a UserError that says why it is not text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if b"\0" in data[:65536]:
        raise UserError(f"{path}: a binary file, not text; leave it out, or convert it to text first")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} line {line}: not UTF-8 text; convert it, for example: iconv -f latin1 -t utf-8 {path.name}"
        ) from None
    return text.replace("\r\n", "\n")

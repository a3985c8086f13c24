"""Files become documents.

In: a file, a folder that is walked in a fixed order, a pattern with `*`, or `-` for standard input.  Out: a `Source`,
a list of `Part`s, which gives `Document`s: a name and a text, line ends as `\\n`. Which files of a folder are read is
for text/folders.py, and what the files hold for text/formats.py.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import glob
import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hornbook.base.console import warn
from hornbook.base.errors import UserError
from hornbook.base.names import plain_name
from hornbook.base.spool import spooled
from hornbook.text.documents import AS_IT_COMES, TextConfig
from hornbook.text.folders import files_below
from hornbook.text.formats import FORMATS, ending_of, format_of, read
from hornbook.text.records import Document, Found, Input
from hornbook.text.streams import BLOCK, Tally, Trouble, compression_of, ending_by_magic, read_blocks

STANDARD_INPUT = "-"
# Text of a compressed file to its size on disk, so that sizes can be chosen before anything is read.
EXPANDS = 3
# Markup in which words are few: read as it is, since nobody says what of it is text, but hardly meant.
MARKUP = {".rtf", ".xml", ".svg"}
MARK_BYTES = 3  # a byte-order mark, of which no text is left


class NothingPipedInError(UserError):
    """Standard input was to be the text, and there is none."""


@dataclass(frozen=True)
class Part:
    """Files in the order in which they are read, and how."""

    name: str
    root: Path
    files: tuple[Path, ...]
    config: TextConfig = AS_IT_COMES
    content: str | None = None
    """What stands for the files' content, where their times do not tell whether they are the same."""
    split: str = ""
    """Where the whole of it belongs; otherwise preparation decides for each document."""
    shape: Callable[[Iterator[str]], Iterator[str]] | None = None
    """Makes documents of the texts that the files hold, in their order."""
    variant: str = ""
    """Says how it is shaped: with the same files, another variant is another text."""
    origin: str = ""
    """Where it was fetched from, to the commit, where it is not in a table."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What of a folder is not read: endings, and how many files there are of each."""
    is_share: bool = False
    """Whether it is one of several into which a part was cut, any of which may be empty."""
    span: tuple[int, int] | None = None
    """The bytes of its one file that are read, from the beginning of a line to the end of one."""

    def documents(self, tally: Tally | None = None) -> Iterator[Document]:
        """Every document that is not empty, one after another; at least one, or a UserError. What is passed over or
        replaced on the way is told to `tally`."""
        mine = Tally()
        found = 0
        for document in self._shaped(mine):
            yield document
            found += document.ends
            if found == self.config.max_documents:
                break
        if tally is not None:
            tally.add(mine)
        if not found and not self.is_share:
            raise self.nothing_found(mine)

    def nothing_found(self, tally: Tally) -> UserError:
        where = self.name if self.content is not None else self.files[0] if len(self.files) == 1 else self.root
        if tally.skipped:
            return UserError(f"{where}: no record could be read; the first of {tally.skipped}: {tally.first_skipped}")
        return UserError(f"{where}: empty; there is no text to learn from")

    def _shaped(self, tally: Tally) -> Iterator[Document]:
        if self.shape is not None:
            for number, text in enumerate(self.shape(document.text for document in self._documents(tally))):
                yield Document(f"{self.name} {number + 1}", text, split=self.split)
        elif self.split:
            yield from (replace(document, split=self.split) for document in self._documents(tally))
        else:
            yield from self._documents(tally)

    def _documents(self, tally: Tally) -> Iterator[Document]:
        for path in self.files:
            open_piece: Document | None = None
            name = self.name if self.content is not None else _name_below(path, self.root)
            for found in _with_its_end(path, name, self.config, tally, self.span):
                if isinstance(found, Trouble):
                    self._stop_or_skip(path, found, tally)
                elif found.size or (open_piece is not None and found.ends):
                    open_piece = None if found.ends else found
                    yield found
            if open_piece is not None:  # what was read of a damaged file ends here
                yield Document(open_piece.name, "")

    def _stop_or_skip(self, path: Path, trouble: Trouble, tally: Tally) -> None:
        tally.skipped += 1
        if self.config.bad_records == "skip" and tally.first_skipped:
            return
        where = self.name if self.content is not None else str(path)
        line = f"{where} {self._place_in_file(path, trouble.place)}".rstrip() + f": {trouble.what}"
        if self.config.bad_records == "stop":
            if trouble.place and "--text." not in trouble.what:
                line += "; --text.bad-records skip passes it over"
            raise UserError(line) from None
        tally.first_skipped = line

    def _place_in_file(self, path: Path, place: str) -> str:
        """`line 3` of a span, as a line of its file."""
        if self.span is None or not place.startswith("line "):
            return place
        before = sum(block.count(b"\n") for block in read_blocks(path, span=(0, self.span[0])))
        return f"line {before + int(place.removeprefix('line '))}"

    def likely_bytes_of_text(self) -> float:
        """From the sizes on disk, nothing read."""
        return sum(likely_bytes(path, self.config) for path in self.files)

    def files_that_are_documents(self) -> Iterator[Path]:
        """Those of which it is sure, nothing read, that each is one document: or reading it stops everything."""
        config = self.config
        if self.shape or config.bad_records == "skip" or config.document in ("line", "row") or config.max_documents:
            return
        for path in self.files:
            chosen = format_of(path, config.format) or FORMATS["text"]
            if chosen.name == "text" and not compression_of(path.name) and os.stat(path).st_size > MARK_BYTES:
                yield path

    def signature(self) -> str:
        digest = hashlib.sha256()
        digest.update(json.dumps([self.config.model_dump(), self.split, self.variant], sort_keys=True).encode())
        chosen = (format_of(path, self.config.format) for path in self.files)
        if newer := sorted({f"{each.name} {each.version}" for each in chosen if each and each.version > 1}):
            digest.update(json.dumps(newer).encode())
        for path in self.files:
            facts = os.stat(path)
            line = self.content or f"{_name_below(path, self.root)}|{facts.st_size}|{facts.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))  # a file's name need not be UTF-8
        return digest.hexdigest()


@dataclass(frozen=True)
class Source:
    """Text that is there, under one name: parts that are read one after another, each in its own way."""

    name: str
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, part: Part) -> Source:
        return cls(part.name, (part,))

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for part in self.parts for path in part.files)

    @property
    def left_out(self) -> dict[str, int]:
        return dict(sum((Counter(part.left_out) for part in self.parts), Counter()))

    @property
    def origins(self) -> list[str]:
        return list(dict.fromkeys(part.origin for part in self.parts if part.origin))

    def documents(self, tally: Tally | None = None) -> Iterator[Document]:
        """Those of all parts."""
        for part in self.parts:
            yield from part.documents(tally)

    def bytes_on_disk(self) -> int:
        return sum(os.stat(path).st_size for path in self.files)

    def likely_bytes_of_text(self) -> int:
        return round(sum(part.likely_bytes_of_text() for part in self.parts))

    def signature(self) -> str:
        """Changes when a file is added, removed or edited, or read in another way; from the folder entries, so it is
        cheap."""
        each = [part.signature() for part in self.parts]
        return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()

    def read_with(self, config: TextConfig) -> Source:
        """The same files, with what `config` says otherwise than its defaults."""
        turned = config.model_dump(exclude_defaults=True)
        return replace(self, parts=tuple(replace(part, config=part.config.with_(**turned)) for part in self.parts))


def source_from_path(path: Path, config: TextConfig = AS_IT_COMES) -> Source:
    """The text at `path`: one file of any ending, all files of text below a folder, those that a pattern names, or
    standard input."""
    if str(path) == STANDARD_INPUT:
        spool, content = _standard_input()
        return Source.of(Part("standard-input", spool.parent, (spool,), config, content))
    path = path.expanduser()
    if path.is_file():
        _doubt_markup(path, (path,), config)
        return Source.of(Part(name_of(path), path.parent, (path,), config))
    if path.is_dir():
        found, left_out = files_below(path, config)
        return Source.of(Part(name_of(path), path, found, config, left_out=left_out))
    if glob.has_magic(str(path)):
        found = tuple(Path(each) for each in sorted(glob.glob(str(path), recursive=True)) if Path(each).is_file())
        if not found:
            raise UserError(f"{path}: no file has such a name")
        _doubt_markup(path, found, config)
        return Source.of(Part(name_of(path), _fixed_part(path), found, config))
    if path.exists():
        raise UserError(f"{path}: neither a file nor a folder; a stream is read from standard input: --data -")
    raise UserError(f"{path}: no such file or folder, and no corpus of that name (see: hornbook corpora)")


def name_of(path: Path) -> str:
    """What to call the text at a path, without its endings, as a folder can be called too; a pattern bears the name of
    its folder."""
    if str(path) == STANDARD_INPUT:
        return "standard-input"
    if glob.has_magic(str(path)) and not path.exists():
        path = _fixed_part(path)
    path = path.resolve()
    if path.is_dir():
        return plain_name(path.name)
    return plain_name(Path(path.name[: len(path.name) - len(compression_of(path.name))]).stem)


def joined(sources: list[Source]) -> Source:
    """Several sources, one after another."""
    name = plain_name("+".join(source.name for source in sources)) if len(sources) > 1 else sources[0].name
    return Source(name, tuple(part for source in sources for part in source.parts))


@functools.cache
def _doubt_markup(path: Path, files: tuple[Path, ...], config: TextConfig) -> None:
    """A word, once, on what is read with its markup where nobody said that it is text."""
    met = sorted(MARKUP & {ending_of(each.name) for each in files})
    if met and config.format is None:
        warn(
            f"{path}: {', '.join(met)} is read as it is, markup and all; for its words alone, convert it to plain text "
            "first (if it is meant so: --text.format text)"
        )


def _fixed_part(pattern: Path) -> Path:
    """The folder above the first part with a wildcard."""
    parts = list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    return Path(*parts)


def likely_bytes(path: Path, config: TextConfig) -> float:
    """Of text in a file, from its size on disk."""
    chosen = format_of(path, config.format) or FORMATS["text"]
    expands = EXPANDS * min(chosen.text_share, 1) if compression_of(path.name) else chosen.text_share
    return os.stat(path).st_size * expands


def _name_below(path: Path, folder: Path) -> str:
    """`path.relative_to(folder).as_posix()`, which for thousands of files takes longer than to read them."""
    whole, above = str(path), f"{folder}{os.sep}"
    if whole.startswith(above):
        return whole[len(above) :].replace(os.sep, "/")
    return path.relative_to(folder).as_posix()


def _with_its_end(
    path: Path, name: str, config: TextConfig, tally: Tally, span: tuple[int, int] | None
) -> Iterator[Found]:
    """What a file holds; trouble that ends it comes last, like that of a record."""
    late: list[Trouble] = []
    try:
        how = (config.format, config.field, config.document, config.errors)
        yield from read(Input(path, name, tally, *how, late, config.headers, span))
        yield from late
    except Trouble as trouble:
        yield trouble


@functools.cache
def _standard_input() -> tuple[Path, str]:
    """Standard input as a file, since preparing reads a text more than once; it goes when the process ends."""
    if sys.stdin is None or sys.stdin.isatty():
        raise NothingPipedInError("-: nothing is piped in; for example: cat FILE | hornbook prepare -")
    stream = sys.stdin.buffer
    first = stream.read(BLOCK)
    if not first:
        raise NothingPipedInError("-: nothing came through the pipe; for example: cat FILE | hornbook prepare -")
    rest = iter(lambda: stream.read(BLOCK), b"")
    stack = contextlib.ExitStack()
    blocks = itertools.chain([first], rest)
    try:
        path, digest = stack.enter_context(spooled(blocks, STANDARD_INPUT, ending_by_magic(first)))
    except UserError as error:
        raise UserError(f"{STANDARD_INPUT}: {error}") from None
    atexit.register(stack.close)
    return path, digest

"""One reader for each format.

In: a file, and how to read it.  Out: its documents, and in their place a `Trouble` for each record that is none. A
reader raises a `Trouble` where the rest of the file cannot be read. A format is one function and its entry in FORMATS;
each may also be compressed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook.text.columns import read_hdf5, read_parquet
from hornbook.text.jsonvalues import json_values, kind_of, parsed
from hornbook.text.mail import is_in_maildir, read_mbox, read_message
from hornbook.text.markup import read_html, read_notebook
from hornbook.text.records import TOO_LONG, Document, Found, Input, choose_field, in_pieces, listed, short
from hornbook.text.streams import (
    LARGEST_RECORD,
    Cutter,
    Trouble,
    compression_of,
    decode,
    read_escaped_blocks,
    read_lines,
    read_text_blocks,
    text_begins,
    until_trouble,
    with_plain_line_ends,
    without_escaped_bytes,
    without_lone_surrogates,
)
from hornbook.text.tables import read_csv, read_tsv


@dataclass(frozen=True)
class Format:
    name: str
    endings: tuple[str, ...]
    read: Callable[[Input], Iterator[Found]]
    records: bool = True
    """Whether a file holds many documents, rather than being one."""
    text_share: float = 1
    """Bytes of text to those of a file, about, so that sizes can be chosen before anything is read."""
    by_lines: bool = False
    """Whether each line is a record of its own, so that a large file can be read from any of them on."""
    version: int = 1
    """One more when files that could be read before come out otherwise: what was prepared from them is then old."""


class _Picker:
    """The text in a record. Which field it is, where nobody says, is settled by a file's first record, so that it does
    not change on the way."""

    def __init__(self, input: Input) -> None:
        self._input = input
        self.field = input.field

    def text(self, record: Any) -> str:
        if isinstance(record, str):
            return self._sound(record)
        if not isinstance(record, dict):
            raise Trouble(f"should be an object or a string, not {kind_of(record)}")
        if self.field is None:
            self.field = choose_field({name: isinstance(value, str) for name, value in record.items()})
        if self.field not in record:
            raise Trouble(f"has no field {short(self.field)}; it has {listed(record)}")
        text = record[self.field]
        if not isinstance(text, str):
            raise Trouble(f"field {short(self.field)} should hold text, not {kind_of(text)}")
        return self._sound(text)

    def _sound(self, text: str) -> str:
        return without_lone_surrogates(text, self._input.errors, self._input.tally)


def read_text_file(input: Input) -> Iterator[Found]:
    """A whole file, or each line of it that is not blank."""
    if input.document in ("line", "row"):
        for number, line in read_lines(input.text_blocks()):
            try:
                if line is None:
                    raise Trouble(TOO_LONG)
                text = input.decode(line.removesuffix(b"\r"))
                if text.strip():
                    yield input.record(f"line {number}", text)
            except Trouble as trouble:
                yield trouble.at(f"line {number}")
        return
    if (small := input.bytes_if_small()) is not None:
        text = decode(text_begins(small), input.errors, input.tally, first_line=1)
        yield Document(input.name, with_plain_line_ends(text))
        return
    yield from in_pieces(input.name, read_text_blocks(input.text_blocks(), input.errors, input.tally))


def read_jsonl(input: Input) -> Iterator[Found]:
    """A JSON object or string on each line; blank lines are passed over."""
    picker = _Picker(input)
    for number, line in read_lines(input.text_blocks()):
        try:
            if line is None:
                raise Trouble(TOO_LONG)
            if line.strip():
                yield input.record(f"line {number}", picker.text(parsed(input.decode(line))))
        except Trouble as trouble:
            yield trouble.at(f"line {number}")


def settled_field(input: Input) -> str | None:
    """Which field of JSON lines holds the text: the one that is said, or that the first record settles; None where
    that record settles none."""
    picker = _Picker(input)
    first = next((line for _, line in read_lines(input.text_blocks()) if line is None or line.strip()), None)
    with contextlib.suppress(Trouble):
        picker.text(parsed(input.decode(first or b"")))
    return picker.field


def read_json(input: Input) -> Iterator[Found]:
    """The elements of an array, or objects one after another, of which there is mostly one."""
    picker = _Picker(input)
    for line, source in json_values(read_escaped_blocks(input.text_blocks())):
        try:
            if len(source) > LARGEST_RECORD:
                raise Trouble(TOO_LONG)
            source = without_escaped_bytes(source, input.errors, input.tally)
            yield input.record(f"line {line}", picker.text(parsed(source)))
        except Trouble as trouble:
            yield trouble.at(f"line {line}")


PLAIN_TEXT = "txt text md markdown rst adoc org log srt vtt"
SOURCE_CODE = """
    py pyi c h cc cpp cxx hpp hh cu cuh java kt kts scala go rs swift m mm js mjs cjs jsx ts tsx rb php pl pm
    lua r jl hs ml mli fs fsx cs vb dart zig nim ex exs erl clj cljs lisp el scm sh bash zsh fish ps1 sql
    css scss tex bib proto cmake f90 f95 asm s v vhd sv sol yaml yml toml ini cfg
"""
FORMATS = {
    each.name: each
    for each in [
        Format(
            "text",
            tuple(f".{ending}" for ending in (PLAIN_TEXT + SOURCE_CODE).split()),
            read_text_file,
            records=False,
        ),
        Format("html", (".html", ".htm", ".xhtml"), read_html, records=False, text_share=0.3, version=2),
        Format("notebook", (".ipynb",), read_notebook, records=False, text_share=0.3, version=2),
        Format("jsonl", (".jsonl", ".ndjson"), read_jsonl, by_lines=True),
        Format("json", (".json",), read_json),
        Format("csv", (".csv",), read_csv, version=2),
        Format("tsv", (".tsv",), read_tsv, version=2),
        Format("parquet", (".parquet",), read_parquet, text_share=3),
        Format("hdf5", (".h5", ".hdf5"), read_hdf5),
        Format("mail", (".eml",), read_message, records=False, text_share=0.5),
        Format("mbox", (".mbox",), read_mbox, text_share=0.5),
    ]
}
FORMAT_OF = {ending: each for each in FORMATS.values() for ending in each.endings}
_ENDING = re.compile(r"\.(?=\w*[^\W\d])\w{1,10}$")


def ending_of(name: str) -> str:
    """What stands after a name's last dot, a compression's taken off first; none where that is a number (`notes.2`) or
    more words (`2. The sea`)."""
    found = _ENDING.search(name.lower().removesuffix(compression_of(name)))
    return found[0] if found else ""


def format_of(path: Path, said: str | None = None) -> Format | None:
    """The format that is said, or that a file's ending tells; in a maildir, whatever the ending."""
    if said:
        return FORMATS[said]
    return FORMATS["mail"] if is_in_maildir(path) else FORMAT_OF.get(ending_of(path.name))


def read(input: Input) -> Iterator[Found]:
    """The documents of a file."""
    reader = format_of(input.path, input.format) or FORMATS["text"]
    found = reader.read(input)
    return _as_one(found, input.name) if input.document == "file" and reader.records else found


def _as_one(found: Iterable[Found], name: str) -> Iterator[Found]:
    """All records of a file as one document, each on a line of its own."""
    cutter, troubles = Cutter(), list[Trouble]()
    for each in until_trouble(found, troubles):
        if isinstance(each, Trouble) or each.ids is not None:
            yield each
        else:
            for piece in cutter.add(each.text + "\n"):
                yield Document(name, piece, ends=False)
    if last := cutter.end():
        yield Document(name, last)
    yield from troubles

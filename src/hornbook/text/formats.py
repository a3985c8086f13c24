"""One reader for each format.

In: a file, and how to read it.  Out: its documents, and in their place a `Trouble` for each record that is none. A
reader raises a `Trouble` where the rest of the file cannot be read. A format is one function and its entry in FORMATS;
each may also be compressed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hornbook.text.columns import read_hdf5, read_parquet
from hornbook.text.documents import TOO_LONG, Document, Found, Input, choose_field, listed, short, told_at
from hornbook.text.jsonvalues import json_values
from hornbook.text.streams import (
    LARGEST_RECORD,
    Cutter,
    Trouble,
    brief,
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


@dataclass(frozen=True)
class Format:
    name: str
    endings: tuple[str, ...]
    read: Callable[[Input], Iterator[Found]]
    records: bool = True
    """Whether a file holds many documents, rather than being one."""


class _Picker:
    """The text in a record. Which field it is, where nobody says, is settled by a file's first record, so that it does
    not change on the way."""

    def __init__(self, input: Input) -> None:
        self._input = input
        self._field = input.config.field

    def text(self, record: Any) -> str:
        if isinstance(record, str):
            return self._sound(record)
        if not isinstance(record, dict):
            raise Trouble(f"should be an object or a string, not {_kind(record)}")
        if self._field is None:
            self._field = choose_field({name: isinstance(value, str) for name, value in record.items()})
        if self._field not in record:
            raise Trouble(f"has no field {short(self._field)}; it has {listed(record)}")
        text = record[self._field]
        if not isinstance(text, str):
            raise Trouble(f"field {short(self._field)} should hold text, not {_kind(text)}")
        return self._sound(text)

    def _sound(self, text: str) -> str:
        return without_lone_surrogates(text, self._input.config.errors, self._input.tally)


def read_text_file(input: Input) -> Iterator[Found]:
    """A whole file, or each line of it that is not blank."""
    if input.config.document in ("line", "row"):
        for number, line in read_lines(input.text_blocks()):
            with told_at(f"line {number}") as troubles:
                if line is None:
                    raise Trouble(TOO_LONG)
                text = input.decode(line.removesuffix(b"\r"))
                if text.strip():
                    yield input.document(f"line {number}", text)
            yield from troubles
        return
    if (small := input.bytes_if_small()) is not None:
        replaced, data = input.tally.replaced, text_begins(small)
        text = decode(data, input.config.errors, input.tally, first_line=1)
        as_read = "\r" not in text and input.tally.replaced == replaced
        yield Document(input.name, with_plain_line_ends(text), utf8=data if as_read else None)
        return
    cutter, troubles = Cutter(), list[Trouble]()
    texts = read_text_blocks(input.text_blocks(), input.config.errors, input.tally)
    for text in until_trouble(texts, troubles):
        for piece in cutter.add(text):
            yield Document(input.name, piece, ends=False)
    yield Document(input.name, cutter.end())
    yield from troubles


def read_jsonl(input: Input) -> Iterator[Found]:
    """A JSON object or string on each line; blank lines are passed over."""
    picker = _Picker(input)
    for number, line in read_lines(input.text_blocks()):
        with told_at(f"line {number}") as troubles:
            if line is None:
                raise Trouble(TOO_LONG)
            if line.strip():
                yield input.document(f"line {number}", picker.text(_parsed(input.decode(line))))
        yield from troubles


def read_json(input: Input) -> Iterator[Found]:
    """The elements of an array, or objects one after another, of which there is mostly one."""
    picker = _Picker(input)
    for line, source in json_values(read_escaped_blocks(input.text_blocks())):
        with told_at(f"line {line}") as troubles:
            if len(source) > LARGEST_RECORD:
                raise Trouble(TOO_LONG)
            source = without_escaped_bytes(source, input.config.errors, input.tally)
            yield input.document(f"line {line}", picker.text(_parsed(source)))
        yield from troubles


def read_csv(input: Input, delimiter: str = ",") -> Iterator[Found]:
    """Rows below a row of names."""
    csv.field_size_limit(LARGEST_RECORD)  # the module's own is 128 kB
    lines = _CsvLines(input.text_blocks())
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    column = -1
    while True:
        line = rows.line_num + 1
        with told_at(f"line {line}") as troubles:
            lines.row_size = 0
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise Trouble(f"not sound {'TSV' if delimiter == chr(9) else 'CSV'} ({brief(error)})") from None
            if row is None:
                return
            if names is None:
                names = row
                column = _csv_column(names, input)
            elif row:
                if len(row) != len(names):
                    raise Trouble(f"{len(row)} columns instead of {len(names)}")
                text = without_escaped_bytes(row[column], input.config.errors, input.tally)
                yield input.document(f"line {line}", text)
        if troubles and column < 0:
            raise troubles[0]  # without names no row can be read
        yield from troubles


def read_tsv(input: Input) -> Iterator[Found]:
    return read_csv(input, "\t")


SOURCE_CODE = """
    py pyi c h cc cpp cxx hpp hh cu cuh java kt kts scala go rs swift m mm js mjs cjs jsx ts tsx rb php pl pm
    lua r jl hs ml mli fs fsx cs vb dart zig nim ex exs erl clj cljs lisp el scm sh bash zsh fish ps1 sql html
    css scss tex bib rst adoc org proto cmake f90 f95 asm s v vhd sv sol
"""
FORMATS = {
    each.name: each
    for each in [
        Format(
            "text",
            (".txt", ".text", ".md", ".markdown", *(f".{each}" for each in SOURCE_CODE.split())),
            read_text_file,
            records=False,
        ),
        Format("jsonl", (".jsonl", ".ndjson"), read_jsonl),
        Format("json", (".json",), read_json),
        Format("csv", (".csv",), read_csv),
        Format("tsv", (".tsv",), read_tsv),
        Format("parquet", (".parquet",), read_parquet),
        Format("hdf5", (".h5", ".hdf5"), read_hdf5),
    ]
}
FORMAT_OF = {ending: each for each in FORMATS.values() for ending in each.endings}


def format_by_name(name: str) -> Format | None:
    """The format that a file's ending tells, a compression's taken off first."""
    plain = name.lower().removesuffix(compression_of(name))
    return FORMAT_OF.get(plain[plain.rfind(".") :])


def read(input: Input) -> Iterator[Found]:
    """The documents of a file."""
    chosen = input.config.format
    reader = FORMATS[chosen] if chosen else format_by_name(input.path.name) or FORMATS["text"]
    found = reader.read(input)
    return _as_one(found, input.name) if input.config.document == "file" and reader.records else found


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


class _CsvLines:
    """Lines for the csv module. No generator: that would be at its end after the first trouble."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._lines = read_lines(blocks)
        self.row_size = 0
        """What the row under way has of them; a quote that is never closed makes the rest of the file one row."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        _, line = next(self._lines)
        self.row_size += len(line or b"")
        if line is None or self.row_size > LARGEST_RECORD:
            raise Trouble(TOO_LONG)
        return line.decode(errors="surrogateescape") + "\n"


def _csv_column(names: list[str], input: Input) -> int:
    column = input.config.field or choose_field(dict.fromkeys(names, True))
    if column not in names:
        raise Trouble(f"has no column {short(column)}; it has {listed(names)}")
    return names.index(column)


def _parsed(source: str) -> Any:
    try:
        return json.loads(source)
    except json.JSONDecodeError as error:
        raise Trouble(f"not JSON ({error.msg}: column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else brief(error)
        raise Trouble(f"not JSON that can be read ({what})") from None


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {int: "a number", float: "a number", str: "a string", list: "an array"}.get(type(value), "an object")

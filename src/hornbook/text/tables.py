"""Tables that are text: CSV, TSV and their like.

In: rows of columns, set apart by a comma, semicolon, tab or bar, below a row of names or not.  Out: the documents of
one column. What sets the columns apart, whether the first row names them and which of them is the text are read off
the first rows, always in the same way, and are shown.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hornbook.base.console import note
from hornbook.text.records import TOO_LONG, Found, Input, choose_field, listed, short
from hornbook.text.streams import LARGEST_RECORD, Trouble, brief, read_lines, without_escaped_bytes

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LOOKED_AT_BYTES = 1 << 16
LOOKED_AT_ROWS = 100
# So many rows must have as many columns as the first for a delimiter that the file's name does not tell.
LEAST_ALIKE = 0.5
LONGEST_NAME, MOST_WORDS_OF_NAME = 40, 4
_NUMBER = re.compile(r"[-+]?[\d.,]*(e[-+]?\d+)?%?", re.IGNORECASE)
_shown: set[TableLayout] = set()


def read_csv(input: Input, usual: str = ",") -> Iterator[Found]:
    """The rows of a table, `usual` being what the file's name says of its delimiter."""
    csv.field_size_limit(LARGEST_RECORD)  # the module's own is 128 kB
    blocks = input.text_blocks()
    head = next(blocks, b"")
    delimiter = _delimiter(head, usual)
    lines = _CsvLines(itertools.chain([head], blocks))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    layout: TableLayout | None = None
    shown = False
    row: list[str] | None = None
    while True:
        line = rows.line_num + 1
        lines.row_size = 0
        try:
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise Trouble(f"not sound {'TSV' if delimiter == chr(9) else 'CSV'} ({brief(error)})") from None
            if row is None:
                return
            if not row:
                continue
            first = layout is None
            if layout is None:
                layout = TableLayout.of(row, _rows_in(head, delimiter)[0][1:], delimiter, input.field)
            if first and layout.names:
                continue
            if len(row) != layout.width:
                raise Trouble(f"{len(row)} columns instead of {layout.width}")
            text = without_escaped_bytes(row[layout.column], input.errors, input.tally)
            if not shown:
                layout.show(input.name)
                shown = True
            yield input.record(f"line {line}", text)
        except Trouble as trouble:
            if layout is None:  # so no row can be read
                raise trouble.at("" if row else f"line {line}") from None
            yield trouble.at(f"line {line}")


def read_tsv(input: Input) -> Iterator[Found]:
    return read_csv(input, "\t")


@dataclass(frozen=True)
class TableLayout:
    delimiter: str
    width: int
    names: tuple[str, ...]
    """Those in the first row; none where it is a row like the others."""
    column: int

    @classmethod
    def of(cls, first: Sequence[str], below: Sequence[Sequence[str]], delimiter: str, field: str | None) -> TableLayout:
        """What is to be understood from the first row and some of those below it."""
        named = _are_names(first, below, field)
        names = list(first) if named else [str(number) for number in range(1, len(first) + 1)]
        if field is None:
            rows = below if named else [first, *below]
            field = choose_field({name: _holds_text(rows, place, len(first)) for place, name in enumerate(names)})
        if field in names:
            column = names.index(field)
        elif _is_number_of_column(field, len(names)):
            column = int(field) - 1
        else:
            raise Trouble(f"has no column {short(field)}; it has {listed(names)}")
        return cls(delimiter, len(first), tuple(first) if named else (), column)

    def show(self, name: str) -> None:
        """Once, however many files are laid out like this, and however often they are read."""
        if self in _shown:
            return
        _shown.add(self)
        columns = f"{self.width} columns set apart by {DELIMITERS[self.delimiter]}" if self.width > 1 else "one column"
        named = f"named by the first row ({listed(self.names)})" if self.names else "without a row of names"
        text = short(self.names[self.column]) if self.names else f"column {self.column + 1}"
        note(f"{name}: {columns}, {named}; the text is {text}")


def _delimiter(head: bytes, usual: str) -> str:
    """What cuts most of the first rows into as many columns as the very first; the usual one of several that do."""
    found, most = usual, 0.0
    for each in (usual, *(other for other in DELIMITERS if other != usual)):
        rows, sound = _rows_in(head, each)
        if not rows or len(rows[0]) < 2:
            continue
        alike = sum(len(row) == len(rows[0]) for row in rows) / (len(rows) + (not sound))
        if alike > most and (each == usual or alike >= LEAST_ALIKE):
            found, most = each, alike
    return found


def _rows_in(head: bytes, delimiter: str) -> tuple[list[list[str]], bool]:
    """The first rows that are not blank, and whether nothing unsound stands between them."""
    lines = head[:LOOKED_AT_BYTES].decode(errors="surrogateescape").split("\n")
    cut_off = len(head) >= LOOKED_AT_BYTES
    if cut_off:
        lines.pop()
    rows: list[list[str]] = []
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                rows.append(row)
            if len(rows) == LOOKED_AT_ROWS:
                break
    except csv.Error:
        return rows, cut_off and reader.line_num == len(lines)
    return rows, True


def _are_names(first: Sequence[str], below: Sequence[Sequence[str]], field: str | None) -> bool:
    """Names are short, begin with a letter, are all different, and are no values of the column below them."""
    if (field or "text") in first and not _is_number_of_column(field, len(first)):
        return True
    cells = [cell.strip() for cell in first if cell.strip()]
    if not cells or len(set(cells)) < len(cells) or not all(map(_could_be_name, cells)):
        return False
    others = [row for row in below if row != first and len(row) == len(first)]
    return not any(cell and row[place] == cell for row in others for place, cell in enumerate(first))


def _is_number_of_column(field: str | None, width: int) -> bool:
    return field is not None and field.isdecimal() and 0 < int(field) <= width


def _could_be_name(cell: str) -> bool:
    return (
        len(cell) <= LONGEST_NAME
        and len(cell.split()) <= MOST_WORDS_OF_NAME
        and (cell[0].isalpha() or cell[0] == "_")
        and cell[-1] not in ".,;:!?\u2026\u3002\uff01\uff1f"
        and "\n" not in cell
        and "://" not in cell
    )


def _holds_text(rows: Sequence[Sequence[str]], place: int, width: int) -> bool:
    """Whether something in a column is no number, as far as was looked."""
    cells = [row[place] for row in rows if len(row) == width]
    return width == 1 or not cells or any(not _NUMBER.fullmatch(cell.strip()) for cell in cells)


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

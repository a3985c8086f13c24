"""The words in a page, and the cells of a notebook.

In: HTML, or the JSON that Jupyter writes.  Out: one document: what a reader of the page would see, or what was typed
into the notebook. Neither holds markup, scripts, outputs or pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import unescape
from html.parser import HTMLParser
from typing import Any

from hornbook.text.jsonvalues import kind_of, parsed
from hornbook.text.records import TOO_LONG, Found, Input, in_pieces, read_whole
from hornbook.text.streams import (
    LARGEST_RECORD,
    Trouble,
    decode,
    read_text_blocks,
    with_plain_line_ends,
    without_lone_surrogates,
)

# What stands between two words: the largest of all that is met there.
BLANK, TAB, LINE, PARAGRAPH = 1, 2, 3, 4
ENOUGH = 2  # line ends in a row
PARAGRAPHS = "p h1 h2 h3 h4 h5 h6 pre blockquote"
LINES = """
    address article aside body caption dd details dialog div dl dt fieldset figcaption figure footer form header hr
    legend li main menu nav ol option section summary table tbody tfoot thead tr ul
"""
GAP_AROUND = {
    **dict.fromkeys(PARAGRAPHS.split(), PARAGRAPH),
    **dict.fromkeys(LINES.split(), LINE),
    **dict.fromkeys(["td", "th"], TAB),
}
# Nobody sees what is inside. A head needs no mention: of what it holds, only these have text.
DROPPED = {"title", "script", "style", "template", "noscript", "svg", "iframe", "object"}
_BLANKS = re.compile(r"[ \t\n\r\f]+")
_PICTURE = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,[A-Za-z0-9+/=]+")


def read_html(input: Input) -> Iterator[Found]:
    """The words of a page; a block begins on a line of its own."""
    return _one_text(input, _page(input))


def words_of_page(page: str) -> str:
    """Those of a page that is at hand as a whole."""
    parser = _Page()
    parser.feed(page)
    return parser.take() + parser.last_words()


def _page(input: Input) -> Iterator[str]:
    page, waiting, size = _Page(), list[str](), 0
    for text in read_text_blocks(input.text_blocks(), input.errors, input.tally):
        waiting.append(text)
        size += len(text)
        if size < len(page.rawdata):  # what is not whole is looked at from its beginning: not at each block
            continue
        page.feed("".join(waiting))
        waiting, size = [], 0
        if len(page.rawdata) > LARGEST_RECORD:
            raise Trouble(f"a tag, comment or script {TOO_LONG}", f"line {page.getpos()[0]}")
        yield page.take()
    page.feed("".join(waiting))
    yield page.last_words()


class _Page(HTMLParser):
    """What of a page was seen and not yet taken. `rawdata`, which is the parser's, waits to be whole."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._gap = 0
        self._newlines = ENOUGH  # before the first word none is needed
        self._preformatted = self._depth = 0
        self._dropped = ""

    def take(self) -> str:
        parts, self._parts = self._parts, []
        return "".join(parts)

    def last_words(self) -> str:
        """`close` would look at an unfinished tag again from each of its letters, and show it; browsers drop it."""
        if not self.rawdata.startswith("<") or len(self.rawdata) == 1:
            self.handle_data(unescape(self.rawdata))
        return self.take()

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """One of an unknown kind is a comment to browsers, and to later parsers."""
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:
            return self.parse_bogus_comment(i)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":
            self._dropped = ""
        if self._dropped:
            self._depth += tag == self._dropped
        elif tag in DROPPED:
            self._dropped, self._depth = tag, 1
        elif tag == "br":
            self._gap = PARAGRAPH if self._gap == LINE else max(self._gap, LINE)
        else:
            self._preformatted += tag == "pre"
            self._gap = max(self._gap, GAP_AROUND.get(tag, 0))

    def handle_endtag(self, tag: str) -> None:
        if self._dropped:
            self._depth -= tag == self._dropped
            if self._depth == 0:
                self._dropped = ""
        else:
            self._preformatted = max(self._preformatted - (tag == "pre"), 0)
            self._gap = max(self._gap, GAP_AROUND.get(tag, 0))

    def handle_data(self, data: str) -> None:
        if self._dropped:
            return
        if self._preformatted:
            self._write(data.lstrip("\n") if self._gap >= LINE else data)
            return
        text = _BLANKS.sub(" ", data)
        if text.startswith(" "):
            self._gap = max(self._gap, BLANK)
        self._write(text.strip(" "))
        if text.endswith(" "):
            self._gap = max(self._gap, BLANK)

    def _write(self, text: str) -> None:
        if not text:
            return
        if self._gap >= LINE:
            between = "\n" * (self._gap - LINE + 1 - self._newlines)
        else:
            between = "" if self._newlines else ("", " ", "\t")[self._gap]
        self._parts += [between, text]
        ends = len(text) - len(text.rstrip("\n"))
        self._newlines = min(ends + (self._newlines if ends == len(text) else 0), ENOUGH)
        self._gap = 0


def read_notebook(input: Input) -> Iterator[Found]:
    """The sources of a notebook's cells, a blank line between them."""
    book = parsed(decode(read_whole(input.text_blocks()), input.errors, input.tally, first_line=1))
    sources = [_source(cell, f"cell {number}") for number, cell in enumerate(_cells(book), start=1)]
    text = "\n\n".join(source.strip("\n") for source in sources if source.strip())
    text = without_lone_surrogates(text, input.errors, input.tally)
    yield from _one_text(input, [with_plain_line_ends(text)])


def _cells(book: Any) -> list[Any]:
    """Before its fourth format, a notebook had them on sheets."""
    if isinstance(book, dict):
        if isinstance(cells := book.get("cells"), list):
            return cells
        if isinstance(sheets := book.get("worksheets"), list):
            return [cell for sheet in sheets if isinstance(sheet, dict) for cell in sheet.get("cells") or []]
    raise Trouble("not a notebook: it has no cells")


def _source(cell: Any, place: str) -> str:
    if not isinstance(cell, dict):
        raise Trouble(f"should be an object, not {kind_of(cell)}", place)
    if cell.get("cell_type") not in ("markdown", "code", "heading"):
        return ""
    source = cell.get("source", cell.get("input", ""))
    try:
        text = source if isinstance(source, str) else "".join(source or [])
    except TypeError:
        raise Trouble("its source should be text, or lines of it", place) from None
    return text if cell["cell_type"] == "code" else _PICTURE.sub("", text)


def _one_text(input: Input, parts: Iterable[str]) -> Iterator[Found]:
    """The parts of a text as one document, or each line of it that is not blank."""
    if input.document in ("line", "row"):
        for number, line in enumerate(_lines(parts), start=1):
            if line.strip():
                yield input.record(f"line {number}", line)
        return
    yield from in_pieces(input.name, parts)


def _lines(parts: Iterable[str]) -> Iterator[str]:
    rest = ""
    for part in parts:
        *lines, rest = (rest + part).split("\n")
        yield from lines
        if len(rest) > LARGEST_RECORD:
            raise Trouble(f"a line {TOO_LONG}")
    yield rest

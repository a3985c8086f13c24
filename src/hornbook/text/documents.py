"""How the documents of a text are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hornbook.base.settings import Settings
from hornbook.text.formats import FORMATS
from hornbook.text.streams import Errors

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]


class TextConfig(Settings):
    format: FormatName | None = None
    """What a file holds; by its ending when not given."""
    field: str | None = None
    """Field or column that holds the text, or a column's number; `text`, or the only one with text, when not given."""
    document: Literal["file", "line", "row"] | None = None
    """A file is one document, or each of its lines or rows; what fits the format when not given."""
    headers: tuple[str, ...] = Field(("Subject",), strict=False)
    """Of letters: the headers above what was written."""
    errors: Errors = "strict"
    """What becomes of bytes that are not UTF-8: stop there, or replace them by U+FFFD and count."""
    bad_records: Literal["stop", "skip"] = "stop"
    """What becomes of a record or file that cannot be read: stop there, or pass it over and count."""
    max_documents: int | None = Field(None, ge=1)
    """At most so many documents are read from each source."""


AS_IT_COMES = TextConfig()

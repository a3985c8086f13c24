"""A source is cut into shares, to be read by many at once.

In: a source.  Out: parts of it, one after another the same documents, each about as much text as the others. Where the
cuts are follows from the files and their sizes alone. Many small files become one share; a large one is cut between
two lines where each line is a record of its own, and otherwise stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hornbook.text.documents import TextConfig
from hornbook.text.formats import FORMATS, format_of, settled_field
from hornbook.text.readers import Part, Source, likely_bytes
from hornbook.text.records import Input
from hornbook.text.streams import BLOCK, Tally, Trouble, compression_of

# A file is cut into shares no smaller than this share of one.
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Share:
    part: Part
    of: int
    """The number of the source's part that it is of."""
    text_bytes: float
    """About."""


def cut(source: Source, text_bytes: float) -> list[Share]:
    """Shares of about so much text each."""
    return [
        Share(share, number, size) for number, part in enumerate(source.parts) for share, size in _cut(part, text_bytes)
    ]


def _cut(part: Part, most: float) -> Iterator[tuple[Part, float]]:
    # What counts documents, or makes them of several texts, has to see all that comes before.
    if part.shape is not None or part.config.max_documents is not None:
        yield part, part.likely_bytes_of_text()
        return
    waiting, size = list[Path](), 0.0
    for path in part.files:
        its_size = likely_bytes(path, part.config)
        if waiting and size + its_size > most:
            yield replace(part, files=tuple(waiting), is_share=True), size
            waiting, size = [], 0.0
        cuts = round(its_size / most) if its_size >= (1 + LEAST_SHARE) * most else 1
        config = _config_within(path, part, cuts)
        if config is None:
            waiting.append(path)
            size += its_size
            continue
        for span in _spans(path, cuts):
            share = its_size * (span[1] - span[0]) / path.stat().st_size
            yield replace(part, files=(path,), config=config, is_share=True, span=span), share
    if waiting:
        yield replace(part, files=tuple(waiting), is_share=True), size


def _config_within(path: Path, part: Part, cuts: int) -> TextConfig | None:
    """How to read a span of a file, where it is to be cut and can be: what else its beginning would settle is said."""
    config = part.config
    chosen = format_of(path, config.format) or FORMATS["text"]
    by_lines = chosen.by_lines if chosen.records else chosen.name == "text" and config.document in ("line", "row")
    if cuts < 2 or not by_lines or config.document == "file" or compression_of(path.name):
        return None
    input = Input(path, part.name, Tally(), config.format, config.field, config.document, config.errors)
    try:
        if chosen.records:
            field = settled_field(input)
            return None if field is None else config.with_(field=field)
        next(input.text_blocks())
    except Trouble:  # as a whole it is told, or passed over
        return None
    return config


def _spans(path: Path, cuts: int) -> Iterator[tuple[int, int]]:
    whole = path.stat().st_size
    begin = 0
    with open(path, "rb") as file:
        for number in range(1, cuts + 1):
            end = whole
            if number < cuts:
                file.seek(max(whole * number // cuts - 1, begin))
                end = file.tell()
                while block := file.read(BLOCK >> 4):
                    place = block.find(b"\n")
                    end += place + 1 if place >= 0 else len(block)
                    if place >= 0:
                        break
            if end > begin:
                yield begin, end
            begin = end

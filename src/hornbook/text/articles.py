"""What some corpora hold becomes documents.

In: the texts that the readers find in a corpus's files, in their order: rows, lines or whole files.  Out: the texts of
documents. A shape is a generator; what it must remember lives as long as one reading.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

STORY_END = "<|endoftext|>"
# Spaces around the title, and one sign on each side: two and more are headings inside an article.
ARTICLE_TITLE = re.compile(r" ?= [^=](?:.*[^=])? = ?")
FRAME = re.compile(r"\*\*\* ?(START|END) OF (?:THE|THIS) PROJECT GUTENBERG EBOOK [^\n]*\*\*\*[^\n]*\n?")


def articles(rows: Iterator[str]) -> Iterator[str]:
    """WikiText's rows, a paragraph or a heading each, joined to the articles that they were."""
    article: list[str] = []
    for row in rows:
        for line in row.removesuffix("\n").split("\n"):
            if ARTICLE_TITLE.fullmatch(line) and any(map(str.strip, article)):
                yield "".join(article)
                article = []
            article.append(line + "\n")
    if any(map(str.strip, article)):
        yield "".join(article)


def cleaned_rows(rows: Iterator[str]) -> Iterator[str]:
    """WikiText as it is trained on row by row: without empty rows, doubles, and the marks of its tokenization."""
    seen: set[bytes] = set()
    for row in rows:
        for line in row.split("\n"):
            digest = hashlib.blake2b(line.encode(), digest_size=12).digest()
            if not line.strip() or digest in seen:
                continue
            seen.add(digest)
            for mark in "-.,":
                line = line.replace(f" @{mark}@ ", mark)
            line = line.replace("<unk>", "[UNK]").replace("'", "").replace("\\", "")
            if line.strip():
                yield line


def stories(pieces: Iterator[str]) -> Iterator[str]:
    """Stories with a mark between them, however the text is cut into pieces."""
    open_story = ""
    for piece in pieces:
        *whole, open_story = (open_story + piece).split(STORY_END)
        yield from filter(None, (story.strip("\n") for story in whole))
    if open_story.strip("\n"):
        yield open_story.strip("\n")


def without_frame(books: Iterator[str]) -> Iterator[str]:
    """The books alone, without Project Gutenberg's words before and after them."""
    for book in books:
        marks = {match[1]: match for match in FRAME.finditer(book)}
        start = marks["START"].end() if "START" in marks else 0
        end = marks["END"].start() if "END" in marks else len(book)
        yield book[start:end].strip("\n") + "\n"

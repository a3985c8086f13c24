"""What of a text a vocabulary is learned from.

In: texts.  Out: the same in blocks, for the trainers of `tokenizers`. They end where no piece of text crosses, so that
the vocabulary is the same, learned in less time and memory. A trainer's time grows with the square of the longest
piece, and with how much is new to it rather than with how much there is. So a run of letters without end is cut, and of
a text of which nearly nothing comes twice, such as DNA or base64, less is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

BLOCK = 1 << 15
# Characters. No text that people write has a longer word or row of signs; where there is one, all is cut so.
LONGEST_PIECE = 1_000
# So many bytes may be new in any text, and of the rest one in so many. Texts of people and programs have less: 5 MB of
# Wikipedia 4 %, 30 MB of Python 2 %. Each new byte costs a trainer as much as five that it knows.
NEW_BYTES = 500_000
NEW_SHARE = 16
# A script without blanks has no words that come again: a clause of it is new, and is nothing strange.
LONGEST_CLAUSE = 64

# What may be new: as GPT-2 cuts a text, and as `\w+|[^\w\s]+` does; of other signs only long rows.
LETTERS_OR_DIGITS = re.compile(r"[^\W\d_]+|\d+|(?:[^\w\s]|_){64,}")
WORDS = re.compile(r"\w+|[^\w\s]{64,}")
_LONG_BLANKS = re.compile(rf"\s{{{LONGEST_PIECE}}}")

# Between two pieces, whichever way they are cut: after a line, before a single blank, between letters and signs.
_PLACES = [
    re.compile(r"(?<=\S\n)(?=\S)"),
    re.compile(r"(?<=\S)(?= \S)"),
    re.compile(r"(?<=[0-9A-Za-z])(?=[!-&(-/:-@[-^`{-~])"),  # not "'", with which a piece may go on: "n't"
    re.compile(r"(?<=[^\W_])(?=[\uff0c\u3002\uff01\uff1f\uff1b\uff1a\u3001])"),  # the signs of scripts without blanks
]
_LOOKED_FOR_IN = 2_000


def learnable(texts: Iterable[str], pieces: re.Pattern[str]) -> Iterator[str]:
    """Blocks of texts that a trainer, which cuts them into such pieces, is done with in time."""
    words: set[str] = set()
    seen: set[str] = set()
    read = new = 0
    for block in (block for text in texts for block in _blocks(text)):
        parts = block.split()
        found = set(parts) - words  # most words are known, and are not looked at again
        unseen = set(pieces.findall(" ".join(found))) - seen
        cost = sum(map(_cost, unseen))
        read += len(block)
        if new + cost > NEW_BYTES + read // NEW_SHARE:
            continue
        new += cost
        words |= found
        seen |= unseen
        if _has_long_piece(block, parts, pieces):
            yield from (block[place : place + LONGEST_PIECE] for place in range(0, len(block), LONGEST_PIECE))
        else:
            yield block


def _has_long_piece(block: str, words: list[str], pieces: re.Pattern[str]) -> bool:
    if max(map(len, words), default=0) > LONGEST_PIECE:
        return max(map(len, pieces.findall(block)), default=0) > LONGEST_PIECE
    return _LONG_BLANKS.search(block) is not None


def _cost(piece: str) -> int:
    if piece.isascii():
        return len(piece)
    return len(piece.encode()) if len(piece) > LONGEST_CLAUSE else 0


def _blocks(text: str) -> Iterator[str]:
    begin = 0
    while len(text) - begin > BLOCK:
        end = _place_before(text, begin + BLOCK)
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _place_before(text: str, limit: int) -> int:
    """The last place up to a limit between two pieces; the limit itself where there is none near."""
    begin = limit - _LOOKED_FOR_IN
    near = text[begin : limit + 1]
    for place in _PLACES:
        ends = [found.end() for found in place.finditer(near, 2, len(near))]
        if ends:
            return begin + ends[-1]
    return limit

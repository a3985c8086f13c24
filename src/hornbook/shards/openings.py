"""With which words a model may be asked to begin: those with which people began, in text that it does not train on.

In: shards.  Out: a few words of their validation text, from as many places of it as are asked for.
"""

from __future__ import annotations

import re

from hornbook.shards.format import Shards

LOOK_AHEAD = 256  # tokens after a place, in which a document, a line or a sentence begins
WORDS, CHARACTERS = 4, 40
LONGEST_WORD, CHARACTERS_WITHOUT_BLANKS = 20, 8


def openings(shards: Shards, wanted: int) -> tuple[str, ...]:
    """The first is the same, however many are wanted."""
    tokens = shards.split("val")
    return tuple(_opening(shards, len(tokens) * place // wanted) for place in range(wanted))


def _opening(shards: Shards, place: int) -> str:
    tokens, tokenizer = shards.split("val"), shards.tokenizer
    ids = tokens.read(place, min(LOOK_AHEAD, len(tokens) - place)).tolist()
    if tokenizer.end_of_text in ids[:-1]:
        ids = ids[ids.index(tokenizer.end_of_text) + 1 :]
        begun = tokenizer.decode(ids)
    else:  # in the middle of something: on from the next line, else the next sentence, else the next word
        text = tokenizer.decode(ids).replace("\ufffd", "")  # a character that the place cut through
        parts = [text.partition(mark)[2] for mark in ("\n", ". ", " ")]
        begun = next((part for part in parts if _first_words(part)), text)
    return _first_words(begun)


def _first_words(text: str) -> str:
    line = next((line for each in text.splitlines() if (line := each.strip())), "")
    words = re.match(rf"\S+(?:\s+\S+){{0,{WORDS - 1}}}(?=\s|$)", line)
    if words is not None and len(words[0]) <= (CHARACTERS if " " in words[0] else LONGEST_WORD):
        return words[0]
    return line[:CHARACTERS_WITHOUT_BLANKS]

"""The table of characters that nanoGPT's preparation leaves, without letting it run anything.

In: a meta.pkl, a dictionary whose `itos` names the character of each number.  Out: a tokenizer of these.
A pickle is a program. Of its instructions those are followed that put numbers and texts into dictionaries; any other
ends the reading. Such a vocabulary has nothing that ends a text: documents end with a line, and generation does not.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

from hornbook.exchange.refusal import FormatError, naming, open_file
from hornbook.text.tokenizer import Tokenizer
from hornbook.text.vocabularies import listed_characters

META = "meta.pkl"
LINE_END = "\n"
LARGEST = 64 << 20  # for all of Unicode, 20 MB
PLAIN = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1"}
NO_EFFECT = {"PROTO", "FRAME"}
MEND = "name the model's tokenizer otherwise: --tokenizer FOLDER"


def read_characters(path: Path) -> Tokenizer:
    with naming(path):
        with open_file(path) as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise FormatError(f"too large for a table of characters; {MEND}")
        try:
            held = _value_of(data)
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise FormatError(f"not a sound table ({str(error)[:60]}); {MEND}") from None
        return Tokenizer(listed_characters(_characters_in(held)), told_end=LINE_END, goes_on=True)


def _value_of(data: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memory: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in PLAIN:
            stack.append(argument)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("SETITEM", "SETITEMS"):
            begin = marks.pop() if name == "SETITEMS" else len(stack) - 2
            pairs = stack[begin:]
            del stack[begin:]
            stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
        elif name == "MEMOIZE":
            memory[len(memory)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memory[int(argument or 0)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memory[int(argument or 0)])
        elif name == "STOP":
            return stack.pop()
        elif name not in NO_EFFECT:
            raise FormatError(f"holds more than a table of characters ({name.lower()}); {MEND}")
    raise ValueError("it has no end")


def _characters_in(held: Any) -> list[str]:
    """Those of `itos`, in the order of their numbers."""
    table = held.get("itos") if isinstance(held, dict) else None
    if not isinstance(table, dict) or not table:
        raise FormatError(f"has no itos, the table of characters in nanoGPT's; {MEND}")
    if sorted(number for number in table if type(number) is int) != list(range(len(table))):
        raise FormatError(f"its itos should number characters from 0 on, without a gap; {MEND}")
    characters = [table[number] for number in range(len(table))]
    if any(not isinstance(each, str) or len(each) != 1 for each in characters) or len(set(characters)) < len(table):
        raise FormatError(f"its itos should hold different characters, one a number; {MEND}")
    if LINE_END not in characters:
        raise FormatError(f"has no character that ends a line, with which documents could end; {MEND}")
    return characters

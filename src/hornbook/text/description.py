"""What a tokenizer.json may ask for.

In: the text of one, from anywhere.  Out: the same without padding and truncation, which are no part of what the ids of
a text are. One that would fill the memory, or make the library's Rust end the process, is refused: none of those that
models come with is near.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import threading
from binascii import a2b_base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hornbook.base.errors import UserError
from hornbook.base.output import tell

LARGEST = 64 << 20
# Characters of one token. Vocabularies have rows of up to 512 signs; one token must not make a text of megabytes.
LONGEST_TOKEN = 1 << 16
# How many times as long a text may become before it is cut into entries. Llama's does twice; those that only put a
# character into the forms of Unicode are not counted.
MOST_GROWTH = 16
LONGEST_UNICODE_FORM = 64
# The model's time grows with the square of this; BERT has 100.
MOST_CHARACTERS_OF_A_WORD = 256
# What a tokenizer has to encode before it is relied on.
PROBE = "".join(map(chr, range(32, 127))) * 2 + " \t\n\u00e9\u65e5\u672c \U0001f642"
_one_at_a_time = threading.Lock()


def tamed(text: str) -> str:
    """The description as it may be loaded, written anew, so that it has no second meaning."""
    found = json.loads(text)
    growth = _growth(found.get("normalizer")) * _growth(found.get("pre_tokenizer"))
    if growth > MOST_GROWTH:
        raise UserError(f"would make a text {min(growth, 1e9):,.0f} times as long before cutting it; take another")
    if _repeats(found.get("post_processor")):
        raise UserError("its template repeats the text; take another")
    model = found["model"]
    if model.get("continuing_subword_prefix") and "merges" in model:  # the library panics of a wrong one
        raise UserError("merges byte pairs with a prefix, which is not supported")
    if not 0 <= model.get("max_input_chars_per_word", 0) <= MOST_CHARACTERS_OF_A_WORD:
        raise UserError(f"takes words of more than {MOST_CHARACTERS_OF_A_WORD} characters apart; take another")
    return json.dumps(found | {"padding": None, "truncation": None})


def check_entries(ids: Mapping[str, Any], where: Path) -> None:
    """A vocabulary, once it is loaded: every number below its size is an id, and of a token of bounded length."""
    if sorted(number for number in ids.values() if type(number) is int) != list(range(len(ids))):
        raise UserError(f"{where}: should give each token an id, from 0 on without a gap")
    if (longest := max(map(len, ids), default=0)) > LONGEST_TOKEN:
        raise UserError(f"{where}: has a token of {longest:,} characters, and at most {LONGEST_TOKEN:,} are read")


def _growth(part: Any) -> float:
    """How many times as long a normalizer or pre-tokenizer may make a text."""
    if part is None:
        return 1
    kind = part["type"]
    if kind == "Sequence":
        return math.prod(map(_growth, part["normalizers"] if "normalizers" in part else part["pretokenizers"]))
    if kind == "Replace":
        ((how, pattern),) = part["pattern"].items()
        added = len(part["content"])
        return max(added / len(pattern), 1) if how == "String" and pattern else 1 + added  # it may match nothing
    if kind == "Prepend":
        return 1 + len(part["prepend"])
    if kind == "Precompiled":  # the size of a tree, the tree, and texts that end with a zero
        data = a2b_base64(part["precompiled_charsmap"])
        forms = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
        return 1 if max(map(len, forms)) <= LONGEST_UNICODE_FORM else math.inf
    return 2 if kind in ("ByteLevel", "Metaspace") else 1


def _repeats(processor: Any) -> bool:
    if processor is None:
        return False
    if processor["type"] == "Sequence":
        return any(map(_repeats, processor["processors"]))
    return sum("Sequence" in part for part in processor.get("single", ())) > 1


@contextlib.contextmanager
def panics_untold() -> Iterator[None]:
    """A panic in Rust is an error like others, but before that it is told at length on standard error. All that is said
    there meanwhile waits until the end, and is dropped where that is a panic."""
    with _one_at_a_time, contextlib.ExitStack() as stack:
        try:
            kept = os.dup(2)
        except OSError:  # there is no standard error
            yield
            return
        stack.callback(os.close, kept)
        said = stack.enter_context(tempfile.TemporaryFile())
        os.dup2(said.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = type(error).__name__ == "PanicException"
            raise
        finally:
            os.dup2(kept, 2)
            said.seek(0)
            if not panicked and (data := said.read()):
                tell(data.decode(errors="replace").rstrip("\n"))

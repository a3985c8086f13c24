"""A vocabulary as the script of a page wants it.

In: a folder's tokenizer.  Out: its tokens, merges, and the pattern that cuts text before they are merged, in
JavaScript's spelling: byte-level BPE that cuts as one of tiktoken's vocabularies, bytes, or characters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hornbook.base.errors import UserError
from hornbook.text.encodings import CL100K, O200K
from hornbook.text.gpt2 import byte_letters
from hornbook.text.tokenizer import Tokenizer

MEND = "train with --tokenizer.kind bpe, char or byte to export a page, or --to hf"
# As `ByteLevel` of tokenizers has it.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# What JavaScript spells in another way. Its own \s counts the mark of a byte order in, and U+0085 out.
SPELLED = {
    r"(?i:[sdmt]|ll|ve|re)": "(?:[sSdDmMtT\u017f]|[lL][lL]|[vV][eE]|[rR][eE])",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)": "(?:'[sS\u017f]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    r"\z": "$",
    r"[^\s": r"[^\p{White_Space}",
    r"\s": r"\p{White_Space}",
    r"\S": r"\P{White_Space}",
}


class _NotCarriedError(Exception):
    """What of a tokenizer the script does not have."""


def tokenizer_facts(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    held = json.loads(tokenizer.to_json())
    try:
        return _facts(held, tokenizer)
    except _NotCarriedError as error:
        raise UserError(f"{folder}: a page cannot cut text like its tokenizer ({error}); {MEND}") from None


def _facts(held: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    model = held["model"]
    if model["type"] != "BPE":
        raise _NotCarriedError(f"its model is {model['type']}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk"):
        if model.get(name):
            raise _NotCarriedError(f"it has {name}")
    if held.get("normalizer"):
        raise _NotCarriedError(f"it changes text by {held['normalizer']['type']} first")
    if any(not each["special"] for each in held["added_tokens"]):
        raise _NotCarriedError("it has added tokens that are text")
    letters, ids = byte_letters(), model["vocab"]
    merges = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
    unknown = ids.get(model.get("unk_token") or "")
    pattern, by_character = _pattern(held, bool(merges))
    if not by_character and (unknown is not None or not all(letter in ids for letter in letters)):
        raise _NotCarriedError("some bytes have no token")
    written = ["".join(letters[byte] for byte in tokenizer.piece(token)) for token in range(tokenizer.vocab_size)]
    return {
        "tokens": written,
        "special": {each["id"]: each["content"] for each in held["added_tokens"]},
        "merges": [number for one, other in merges for number in (ids[one], ids[other], ids[one + other])],
        "pattern": pattern,
        "by_character": by_character,
        "whole_first": bool(model.get("ignore_merges")),
        "unknown": unknown,
        "opening": tokenizer.opening,
        "end": tokenizer.end_of_text,
        "stop": tokenizer.stop,
    }


def _pattern(held: dict[str, Any], merges: bool) -> tuple[str | None, bool]:
    """How text is cut before merging, where it matters; and whether tokens are characters."""
    cut = held.get("pre_tokenizer") or {"type": "Sequence", "pretokenizers": []}
    steps = cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
    decoder = (held.get("decoder") or {}).get("type", "Fuse")
    splits = [
        each for each in steps if each["type"] == "Split" and each["behavior"] == "Isolated" and not each["invert"]
    ]
    if decoder == "Fuse" and not merges and len(splits) == len(steps):
        return None, True
    last = steps[-1] if steps else {"type": "none"}
    if decoder != "ByteLevel" or last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        raise _NotCarriedError("its tokens are not bytes, or begin with a blank of its own")
    if len(splits) != len(steps) - 1:
        raise _NotCarriedError("it cuts text in a way of its own")
    if not merges:
        return None, False
    if last.get("use_regex", True) and not splits:
        return _spelled(GPT2), False
    patterns = [each["pattern"].get("Regex") for each in splits]
    if len(patterns) == 1 and patterns[0] in (CL100K, O200K) and not last.get("use_regex", True):
        return _spelled(patterns[0]), False
    raise _NotCarriedError("it cuts text in another way than GPT-2 before merging")


def _spelled(pattern: str) -> str:
    for ours, theirs in SPELLED.items():
        pattern = pattern.replace(ours, theirs)
    return pattern

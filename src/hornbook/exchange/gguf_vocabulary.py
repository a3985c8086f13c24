"""A vocabulary as llama.cpp wants it.

In: a folder's tokenizer.json.  Out: the notes of a GGUF file from which llama.cpp cuts text into the same ids.
It knows byte-level BPE with one of many ways to cut text before merging. Two of ours are among what it can do exactly:
GPT-2's way, and a vocabulary without merges, where it is the same however the text was cut before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.text.gpt2 import byte_letters
from hornbook.text.tokenizer import TOKENIZER_FILES

Value = str | bool | int | float | list[str] | list[int]
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
MEND = "train with --tokenizer.kind bpe, gpt2 or byte to export to GGUF"


def vocabulary_of(folder: Path, size: int) -> dict[str, Value]:
    """The notes; `size` is the model's, which may have more rows than there are tokens."""
    path = folder / TOKENIZER_FILES[0]
    held = files.read_json(path)
    try:
        model = held["model"]
        vocabulary: dict[str, int] = dict(model["vocab"])
        merges = [each.split(" ") if isinstance(each, str) else list(each) for each in model.get("merges", [])]
        added = {int(each["id"]): (str(each["content"]), bool(each["special"])) for each in held["added_tokens"]}
        _check(held, model, merges)
    except _NotCarriedError as error:
        raise UserError(f"{path}: llama.cpp has no tokenizer like this one ({error}); {MEND}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a tokenizer ({type(error).__name__} {str(error)[:60]})") from None
    tokens, kinds = _tokens(path, vocabulary, added, size)
    missing = [letter for letter in byte_letters() if letter not in vocabulary]
    if missing:
        raise UserError(f"{path}: {len(missing)} of the 256 bytes have no token, the first {missing[0]!r}; {MEND}")
    if not all(len(pair) == 2 and all(each in vocabulary for each in [*pair, "".join(pair)]) for pair in merges):
        raise UserError(f"{path}: merges tokens that are not in its vocabulary")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
    }


class _NotCarriedError(Exception):
    """What of a tokenizer llama.cpp does not have."""


def _check(held: dict[str, Any], model: dict[str, Any], merges: list[list[str]]) -> None:
    """Everything in tokenizer.json that changes the ids must be what llama.cpp does too."""
    if model["type"] != "BPE":
        raise _NotCarriedError(f"its model is {model['type']}, not BPE")
    for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise _NotCarriedError(f"it has {name}")
    if model.get("ignore_merges") and merges:
        raise _NotCarriedError("it has ignore_merges")
    if held.get("normalizer"):
        raise _NotCarriedError(f"it changes text by {held['normalizer']['type']} first")
    if held.get("post_processor") and held["post_processor"]["type"] != "ByteLevel":
        raise _NotCarriedError(f"it adds tokens by {held['post_processor']['type']}")
    if (held.get("decoder") or {}).get("type") != "ByteLevel":
        raise _NotCarriedError("its tokens are not bytes")
    cut = held["pre_tokenizer"]
    steps = cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
    last = steps[-1]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        raise _NotCarriedError("its tokens are not bytes, or begin with a blank of its own")
    # `use_regex` is GPT-2's pattern. Without merges a token is a byte, wherever the text is cut.
    as_gpt2 = len(steps) == 1 and last.get("use_regex", True)
    cuts_only = all(each["type"] == "Split" and each["behavior"] == "Isolated" for each in steps[:-1])
    if not as_gpt2 and not (cuts_only and not merges):
        raise _NotCarriedError("it cuts text in another way than GPT-2 before merging")


def _tokens(
    path: Path, vocabulary: dict[str, int], added: dict[int, tuple[str, bool]], size: int
) -> tuple[list[str], list[int]]:
    """Each id's token and kind. Rows of the model that no token has are filled up, as llama.cpp's own tools do."""
    by_id = {token: (name, NORMAL) for name, token in vocabulary.items()}
    by_id |= {token: (name, CONTROL if special else USER_DEFINED) for token, (name, special) in added.items()}
    if len(by_id) > size or any(type(token) is not int or not 0 <= token < size for token in by_id):
        raise UserError(f"{path}: has {len(by_id):,} tokens, the model {size:,}; they are not of one folder")
    filled = [by_id.get(token, (f"[PAD{token}]", UNUSED)) for token in range(size)]
    if len({name for name, _ in filled}) < size:
        raise UserError(f"{path}: has two ids for one token")
    return [name for name, _ in filled], [kind for _, kind in filled]

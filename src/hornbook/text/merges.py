"""GPT-2's vocabulary as OpenAI published it, and as older folders of transformers have it.

In: encoder.json or vocab.json, from tokens to ids, and vocab.bpe or merges.txt, a pair of tokens on each line.
Out: a Tokenizer, as tokenizer.json would give it.
"""

from __future__ import annotations

from pathlib import Path

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.text.description import LARGEST, check_entries
from hornbook.text.gpt2 import byte_letters
from hornbook.text.tokenizer import TOKENIZER_FILES, Tokenizer
from hornbook.text.vocabularies import END_OF_TEXT, bytes_with_merges

PAIRS_OF_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer that lies in a folder, in one of the ways in which GPT-2's is published."""
    if (folder / TOKENIZER_FILES[0]).is_file():
        return Tokenizer.load(folder)
    for vocabulary, merges in PAIRS_OF_FILES:
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            return _from_merges(folder / vocabulary, folder / merges)
    return None


def _from_merges(vocabulary: Path, merges: Path) -> Tokenizer:
    for path in (vocabulary, merges):
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: too large for a vocabulary; is it the right file?")
    ids = files.read_json(vocabulary)
    letters = set(byte_letters())
    check_entries(ids, vocabulary)
    if END_OF_TEXT not in ids:
        raise UserError(f"{vocabulary}: has no {END_OF_TEXT} token, which ends a document")
    strange = next((token for token in ids if token != END_OF_TEXT and not letters.issuperset(token)), None)
    if strange is not None:
        raise UserError(f"{vocabulary}: {strange[:40]!r} is no token of GPT-2's, which are made of letters for bytes")
    try:
        lines = merges.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{merges}: cannot be read as a text ({error})") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        one, _, other = line.partition(" ")
        if not {one, other, one + other} <= ids.keys():
            raise UserError(f"{merges} line {number}: should be two tokens of {vocabulary.name} that make a third")
        pairs.append((one, other))
    return Tokenizer(bytes_with_merges(ids, pairs))

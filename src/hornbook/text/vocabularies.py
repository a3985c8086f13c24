"""Vocabularies, learned and known.

In: texts to learn from, or nothing.  Out: a tokenizer of `tokenizers`, which knows what ends a text. Each is one kind
in text/tokenizer.py; words and their pieces are in text/wordpiece.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hornbook.text.gpt2 import R50K, byte_letters, gpt2_merges, published_ranks
from hornbook.text.sample import LETTERS_OR_DIGITS, learnable

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Byte-level byte-pair encoding: any text goes in and comes out unchanged."""
    from tokenizers import trainers

    tokenizer = bytes_with_merges({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(byte_letters()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(learnable(texts, LETTERS_OR_DIGITS), trainer)
    return tokenizer


def characters(texts: Iterable[str]) -> tokenizers.Tokenizer:
    """One id for each character of the texts, in the order of Unicode, and one for all others."""
    letters = sorted(set().union(*map(set, texts)))
    return _without_merges([*letters, END_OF_TEXT, UNKNOWN], byte_level=False)


def listed_characters(characters: list[str]) -> tokenizers.Tokenizer:
    """Those that another program has numbered in this order, and nothing else: any other is left out of a text."""
    return _without_merges(characters, byte_level=False)


def all_bytes() -> tokenizers.Tokenizer:
    """The id of a byte is its value; nothing is learned."""
    return _without_merges([*byte_letters(), END_OF_TEXT], byte_level=True)


def gpt2(ranks_file: str | None) -> tokenizers.Tokenizer:
    """GPT-2's own vocabulary; nothing is learned."""
    letters = dict(enumerate(byte_letters()))
    ranks = published_ranks(R50K, ranks_file)
    written = {token: token.decode("latin-1").translate(letters) for token in ranks}
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    return bytes_with_merges(vocabulary, [(written[one], written[other]) for one, other in gpt2_merges(ranks)])


def bytes_with_merges(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """From tokens and merges as GPT-2 writes them."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _without_merges(entries: list[str], byte_level: bool) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {entry: token for token, entry in enumerate(entries)}
    unknown = UNKNOWN if UNKNOWN in vocabulary else None
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown, cache_capacity=0))
    # Cut into pieces first: the model's time grows faster than the length of what it is given.
    pieces = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]{1,64}"), "isolated")
    if byte_level:
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, letters])
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.pre_tokenizer = pieces
        tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([entry for entry in (END_OF_TEXT, UNKNOWN) if entry in vocabulary])
    return tokenizer

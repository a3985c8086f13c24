"""Words and their pieces, as wikitext-wordpiece has them.

In: texts.  Out: a tokenizer of `tokenizers`, which drops accents and cuts at `\\w+|[^\\w\\s]+`; its template puts the
end of a text before and after each. As published it keeps control characters, and reads special tokens out of text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hornbook.text.sample import WORDS, learnable

if TYPE_CHECKING:
    import tokenizers

WORDPIECE_END = "<|EOS|>"
WORDPIECE_UNKNOWN = "[UNK]"


def train_wordpiece(texts: Iterable[str], vocab_size: int, as_published: bool) -> tokenizers.Tokenizer:
    """Words and their pieces, without accents; what cannot be put together from pieces is unknown."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    cleaning = [normalizers.NFD(), normalizers.StripAccents()]
    if not as_published:  # its patterns for this were plain strings, which no text contains
        cleaning.append(normalizers.Replace(tokenizers.Regex(r"[\p{C}&&[^\s]]"), ""))
        cleaning.append(normalizers.Replace(tokenizers.Regex(r"\s+"), " "))
    specials = [WORDPIECE_UNKNOWN, WORDPIECE_END]

    def around(vocabulary: dict[str, int], pieces: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=WORDPIECE_UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence(cleaning)
        tokenizer.pre_tokenizer = pieces
        return tokenizer

    def learned(size: int, first: list[str]) -> dict[str, int]:
        tokenizer = around({}, pre_tokenizers.Whitespace())
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=first, show_progress=False)
        tokenizer.train_from_iterator(kept, trainer)
        return dict(tokenizer.get_vocab())

    kept = list(learnable(texts, WORDS))
    # The trainer numbers letters inside of words by chance, and by the numbers it decides between pairs that are
    # equally frequent. With the letters known beforehand, the same text always gives the same vocabulary.
    letters = sorted(entry for entry in learned(1, specials) if entry.startswith("##") and len(entry) == 3)
    vocabulary = learned(vocab_size, [*specials, *letters])
    # As published, special tokens are words: tokenizer.json has no place for the setting that reads them out of text.
    tokenizer = around(vocabulary, _words_or(specials) if as_published else pre_tokenizers.Whitespace())
    tokenizer.add_special_tokens(specials)
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{WORDPIECE_END} $A {WORDPIECE_END}", special_tokens=[(WORDPIECE_END, 1)]
    )
    return tokenizer


def _words_or(names: Sequence[str]) -> tokenizers.pre_tokenizers.PreTokenizer:
    """As `Whitespace` cuts, at `\\w+|[^\\w\\s]+`, but names whole. Spelled out, since to the library's other engine,
    which finds these, numbers such as a half are of both kinds."""
    import tokenizers
    from tokenizers import pre_tokenizers

    word = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u200c\u200d]"
    pattern = "|".join([*map(re.escape, names), f"{word}+", f"(?:(?!{word})\\S)+"])
    return pre_tokenizers.Split(tokenizers.Regex(pattern), "removed", invert=True)

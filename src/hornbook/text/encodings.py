"""The vocabularies that tiktoken knows by name.

In: a name, and its ranks as they were published: a file at hand, else fetched once.  Out: a tokenizer of `tokenizers`
with tiktoken's ids. A piece of text that is a token is that token; any other is merged by ranks. Numbers for which
nothing was published have tokens that no text makes, so that every number below the last is an id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hornbook.base.errors import UserError
from hornbook.text.gpt2 import R50K, RanksFile, byte_letters, merges_of, published_ranks

if TYPE_CHECKING:
    import tokenizers

END = "<|endoftext|>"
AFTER_CL100K = {END: 100_257, "<|fim_prefix|>": 100_258, "<|fim_middle|>": 100_259, "<|fim_suffix|>": 100_260}
# As tiktoken has it, without what tells its engine not to look back; its `$` is the end of the text.
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


@dataclass(frozen=True)
class Encoding:
    ranks: RanksFile
    specials: Mapping[str, int]
    pieces: str | None = None
    """How a text is cut before its bytes are merged; as GPT-2's where nothing is said."""
    entries: int = 0


ENCODINGS = {
    "r50k_base": Encoding(R50K, {END: 50_256}, entries=50_257),
    "p50k_base": Encoding(
        RanksFile("p50k_base.tiktoken", 836_186, "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"),
        {END: 50_256},
        entries=50_281,
    ),
    "cl100k_base": Encoding(
        RanksFile(
            "cl100k_base.tiktoken", 1_681_126, "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
        ),
        AFTER_CL100K | {"<|endofprompt|>": 100_276},
        CL100K,
        entries=100_277,
    ),
    "o200k_base": Encoding(
        RanksFile("o200k_base.tiktoken", 3_613_922, "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
        {END: 199_999, "<|endofprompt|>": 200_018},
        O200K,
        entries=200_019,
    ),
}


def encoding_named(name: str, ranks_file: str | None) -> tokenizers.Tokenizer:
    """One of ENCODINGS; nothing is learned."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    encoding, letters = ENCODINGS[name], dict(enumerate(byte_letters()))
    ranks = published_ranks(encoding.ranks, ranks_file)
    written = {token: token.decode("latin-1").translate(letters) for token in ranks}
    ids = {written[token]: rank for token, rank in ranks.items()} | dict(encoding.specials)
    taken = set(ids.values())
    unused = {f"<|unused_{number}|>": number for number in range(max(taken)) if number not in taken}
    if len(taken) < len(ids) or ids.keys() & unused.keys():
        raise UserError(f"{name}: two tokens have one number; name the file that was published: --tokenizer.ranks-file")
    merges = [(written[one], written[other]) for one, other in merges_of(ranks)]
    met_whole = len(merges) < sum(len(token) > 1 for token in ranks)  # some tokens only
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids | unused, merges=merges, ignore_merges=met_whole))
    if encoding.pieces is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        cut = pre_tokenizers.Split(tokenizers.Regex(encoding.pieces), "isolated")
        as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, as_letters])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*encoding.specials, *unused])
    return tokenizer

"""Text becomes ids, and ids become text again.

In: text, and a kind of tokenizer to learn from it.  Out: ids below `vocab_size`, one of which ends a document.
The format is Hugging Face's tokenizer.json, so that a model folder speaks to every program that reads it. A kind is
one function that builds such a tokenizer, and its entry in KINDS. Text that looks like a special token stays text.
"""

from __future__ import annotations

import codecs
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.base.settings import Settings

if TYPE_CHECKING:
    import tokenizers
    from numpy.typing import NDArray

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
# Punctuation takes the line's end and the next line's indentation with it: 6 % fewer tokens for Python's sources than
# with GPT-2's pieces.
CODE_PIECES = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+(?:[\r\n]+[ \t]*)?",
    r"\s*[\r\n]+[ \t]*",
    r"\s+(?!\S)",
    r"\s+",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class TokenizerConfig(Settings):
    kind: Literal["bpe", "char", "byte"] = "bpe"
    """How text is cut into tokens."""
    vocab_size: int | None = Field(None, ge=257, le=1_000_000)
    """Entries of a trained vocabulary; chosen from the amount of text when not given. Only for bpe."""
    split: Literal["gpt2", "code"] = "gpt2"
    """How bpe cuts text into the pieces that tokens never cross; `code` keeps line ends and indentation together."""
    train_bytes: int = Field(64_000_000, ge=1)
    """At most so much text is read to learn the vocabulary from."""

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if self.split == "code" and self.kind != "bpe":
            yield "split", f"only bpe splits text first; leave it out for {self.kind}"
        if self.vocab_size is not None and self.kind != "bpe":
            yield (
                "vocab_size",
                f"a {self.kind} tokenizer has the vocabulary it needs; leave it out, or --tokenizer.kind bpe",
            )


class Tokenizer:
    """A tokenizer.json in memory."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.encode_special_tokens = True  # "<|endoftext|>" in a text is thirteen characters, not the end of it
        self._inner = inner
        end = inner.token_to_id(END_OF_TEXT)
        if end is None:
            raise UserError(f"tokenizer.json: has no {END_OF_TEXT} token, which ends a document")
        self.end_of_text: int = end

    @property
    def vocab_size(self) -> int:
        return int(self._inner.get_vocab_size())

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._inner.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        try:
            return list(self._inner.encode(text, add_special_tokens=False).ids)
        except TypeError:  # half a surrogate pair, as Python reads a word of a command line that is not UTF-8
            raise UserError("the text to encode is not UTF-8; convert it, for example with iconv") from None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Many texts at once, on all cores."""
        return [each.ids for each in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def checked(self, ids: NDArray[Any], where: str) -> list[int]:
        """Ids from elsewhere, once this vocabulary is seen to have them."""
        if len(ids) and int(ids.max()) >= self.vocab_size:
            raise UserError(
                f"{where}: holds id {int(ids.max()):,}, and the vocabulary ends at {self.vocab_size - 1:,}; "
                "name the tokenizer that made the ids: --tokenizer.kind"
            )
        return list(ids.tolist())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens have none."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        pieces = self._piece_bytes
        return b"".join(pieces[token] for token in ids)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Any bytes, where the vocabulary is the 256 bytes."""
        table = {piece: token for token, piece in enumerate(self._piece_bytes) if len(piece) == 1}
        if len(table) != 256:
            raise UserError("only a byte tokenizer encodes bytes that are not text")
        return [table[data[place : place + 1]] for place in range(len(data))]

    def stream(self) -> TextStream:
        return TextStream(self)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a special token."""
        return self._piece_bytes[token]

    def save(self, folder: Path, context: int | None = None) -> None:
        """Into a staged folder: files that transformers' AutoTokenizer loads with the same ids."""
        self._inner.save(str(folder / TOKENIZER_FILES[0]))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
        }
        if self._inner.token_to_id(UNKNOWN) is not None:
            settings["unk_token"] = UNKNOWN
        files.write_json(folder / TOKENIZER_FILES[1], settings | ({"model_max_length": context} if context else {}))

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        import tokenizers

        path = folder / TOKENIZER_FILES[0]
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"{folder}: has no {TOKENIZER_FILES[0]}") from None
        except UserError:
            raise
        except Exception as error:  # tokenizers raises plain Exceptions
            raise UserError(f"{path}: not a tokenizer ({error})") from None

    @cached_property
    def _piece_bytes(self) -> list[bytes]:
        special = {token for token, added in self._inner.get_added_tokens_decoder().items() if added.special}
        byte_level = type(self._inner.decoder).__name__ == "ByteLevel"
        to_byte = {letter: byte for byte, letter in enumerate(byte_letters())}
        pieces = []
        for token in range(self.vocab_size):
            piece = self._inner.id_to_token(token) or ""
            if token in special:
                pieces.append(b"")
            elif byte_level:
                pieces.append(bytes(to_byte[letter] for letter in piece))
            else:
                pieces.append(piece.encode())
        return pieces


class TextStream:
    """Ids come one by one; text goes out as soon as it is whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(self._tokenizer.piece(token))

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str], total_bytes: int) -> Tokenizer:
    """Learn a vocabulary from texts."""
    size = config.vocab_size or vocab_size_for(total_bytes)
    return Tokenizer(KINDS[config.kind](texts, config, size))


# Kinds whose vocabulary comes from the text; what an id means is not known before.
LEARNED = ("bpe", "char")


def vocab_size_for(text_bytes: int) -> int:
    """A power of two near the square root of the text: 1 MB gives 1,024, 12 MB 4,096, 1 GB 32,768."""
    return int(min(max(2 ** round(math.log2(1.2 * math.sqrt(max(text_bytes, 1)))), 512), 32_768))


def train_bpe(texts: Iterable[str], config: TokenizerConfig, vocab_size: int) -> tokenizers.Tokenizer:
    """Byte-level byte-pair encoding: any text goes in and comes out unchanged."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if config.split == "code":
        tokenizer.pre_tokenizer = _split_then_bytes("|".join(CODE_PIECES))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(byte_letters()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_char(texts: Iterable[str], _config: TokenizerConfig, _size: int) -> tokenizers.Tokenizer:
    """One id for each character of the texts, in the order of Unicode, and one for all others."""
    letters = sorted(set().union(*map(set, texts)))
    return _without_merges([*letters, END_OF_TEXT, UNKNOWN], byte_level=False)


def byte_tokenizer(_texts: Iterable[str], _config: TokenizerConfig, _size: int) -> tokenizers.Tokenizer:
    """The id of a byte is its value; nothing is learned."""
    return _without_merges([*byte_letters(), END_OF_TEXT], byte_level=True)


KINDS: dict[str, Callable[[Iterable[str], TokenizerConfig, int], tokenizers.Tokenizer]] = {
    "bpe": train_bpe,
    "char": train_char,
    "byte": byte_tokenizer,
}


def byte_letters() -> list[str]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 for itself, the others from code point 256 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _without_merges(entries: list[str], byte_level: bool) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {entry: token for token, entry in enumerate(entries)}
    unknown = UNKNOWN if UNKNOWN in vocabulary else None
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown, cache_capacity=0))
    # Cut into pieces first: the model's time grows faster than the length of what it is given.
    pieces = r"[\s\S]{1,64}"
    if byte_level:
        tokenizer.pre_tokenizer = _split_then_bytes(pieces)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pieces), "isolated")
        tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([entry for entry in (END_OF_TEXT, UNKNOWN) if entry in vocabulary])
    return tokenizer


def _split_then_bytes(pattern: str) -> tokenizers.pre_tokenizers.PreTokenizer:
    import tokenizers
    from tokenizers import pre_tokenizers

    pieces = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

"""Text becomes ids, and ids become text again.

In: text, and a kind of tokenizer to learn from it.  Out: ids below `vocab_size`, one of which ends a document.
The format is Hugging Face's tokenizer.json, so that a model folder speaks to every program that reads it. A kind is
one function that builds such a tokenizer, and its entry in KINDS. Text that looks like a special token stays text.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.base.settings import Settings
from hornbook.text.description import LARGEST, PROBE, check_entries, panics_untold, tamed
from hornbook.text.gpt2 import byte_letters, gpt2_ranks, merges_of
from hornbook.text.sample import LETTERS_OR_DIGITS, learnable
from hornbook.text.wordpiece import WORDPIECE_END, WORDPIECE_UNKNOWN, train_wordpiece

if TYPE_CHECKING:
    import tokenizers
    from numpy.typing import NDArray

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
WORDPIECE_ENTRIES = 40_000
# What ends a document, or stands between two, here and in vocabularies of other models.
ENDS = (END_OF_TEXT, WORDPIECE_END, "<|end_of_text|>", "<|bos|>")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class TokenizerConfig(Settings):
    kind: Literal["bpe", "char", "byte", "wordpiece", "gpt2", "file"] = "bpe"
    """How text is cut into tokens."""
    vocab_size: int | None = Field(None, ge=257, le=1_000_000)
    """Entries of a trained vocabulary; for bpe chosen from the amount of text when not given, for wordpiece 40,000."""
    train_bytes: int = Field(64_000_000, ge=1)
    """At most so much text is read to learn the vocabulary from."""
    ranks_file: str | None = None
    """For gpt2: a local copy of r50k_base.tiktoken; fetched once when not given."""
    file: str | None = None
    """For file: a tokenizer.json, or the folder of a model that has one."""
    as_published: bool = False
    """For wordpiece: keep control characters, and read special tokens out of text, as the system it comes from did."""

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if (self.file is not None) != (self.kind == "file"):
            yield "file", "a tokenizer.json goes with --tokenizer.kind file, and that with one"
        if self.ranks_file is not None and self.kind != "gpt2":
            yield "ranks_file", "only gpt2 reads ranks; leave it out, or --tokenizer.kind gpt2"
        if self.as_published and self.kind != "wordpiece":
            yield (
                "as_published",
                "only wordpiece was published in two ways; leave it out, or --tokenizer.kind wordpiece",
            )
        if self.vocab_size is not None and self.kind not in ("bpe", "wordpiece"):
            yield (
                "vocab_size",
                f"a {self.kind} tokenizer has the vocabulary it needs; leave it out, or --tokenizer.kind bpe",
            )


class Tokenizer:
    """A tokenizer.json in memory."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.encode_special_tokens = True  # "<|endoftext|>" in a text is thirteen characters, not the end of it
        self._inner = inner
        ends = [inner.token_to_id(name) for name in ENDS]
        self.end_of_text: int = next((end for end in ends if end is not None), -1)
        if self.end_of_text < 0:
            raise UserError(f"has no {END_OF_TEXT} token, which ends a document")
        # What a template puts before each text; what it puts after is the end of the text, which all documents get.
        self.opening: list[int] = inner.encode("").ids[:1]

    @property
    def vocab_size(self) -> int:
        return int(self._inner.get_vocab_size())

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        return self._json

    @cached_property
    def _json(self) -> str:
        return str(self._inner.to_str())

    @property
    def ids_are_bytes(self) -> bool:
        return self.vocab_size == 257 and self._piece_bytes[:256] == [bytes([byte]) for byte in range(256)]

    @property
    def has_gpt2_pieces(self) -> bool:
        """Whether it is byte-level BPE that cuts text as GPT-2 does."""
        return type(self._inner.pre_tokenizer).__name__ == "ByteLevel" and self._inner.normalizer is None

    @property
    def keeps_text(self) -> bool:
        """Whether it gives a text back; where it drops some, bits per byte are not those of the whole text."""
        return not self._inserts_blanks

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """The ids of a text. A special token's name in it is text like any other, unless `specials` asks for it."""
        if specials:
            pieces = re.split("(" + "|".join(map(re.escape, self._specials)) + ")", text)
            return [each for piece in pieces for each in self._special_or_text(piece)]
        try:
            return list(self._inner.encode(text, add_special_tokens=False).ids)
        except TypeError:  # half a surrogate pair, as Python reads a word of a command line that is not UTF-8
            raise UserError("the text to encode is not UTF-8; convert it, for example with iconv") from None
        except BaseException as error:  # a pattern without end makes a panic
            if type(error).__name__ != "PanicException":
                raise
            raise UserError(f"tokenizer.json: its pattern fails on this text ({error})") from None

    def encode_prompt(self, text: str, specials: bool = False) -> list[int]:
        """Ids for a model to go on from: a document's beginning, but not its end."""
        return [*self.opening, *self.encode(text, specials)] or [self.end_of_text]

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
        if self._inserts_blanks:
            return b"".join(map(self.stream().bytes_of, ids))
        pieces = self._piece_bytes
        return b"".join(pieces[token] for token in ids)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Any bytes, where the vocabulary is the 256 bytes."""
        table = {piece: token for token, piece in enumerate(self._piece_bytes) if len(piece) == 1}
        if len(table) != 256:
            raise UserError("only a byte tokenizer encodes bytes that are not text")
        return [table[data[place : place + 1]] for place in range(len(data))]

    def stream(self, continues: bool = False) -> TextStream:
        """Ids to text one by one; where it `continues` a text, a word comes with the blank before it."""
        return TextStream(self, continues)

    def piece(self, token: int, first: bool = False) -> bytes:
        """The bytes that a token stands for, at the beginning of a text or in it; none for a special token."""
        if first and self._inserts_blanks and self._piece_bytes[token]:
            return str(self._inner.decoder.decode([self._inner.id_to_token(token)])).encode()
        return self._piece_bytes[token]

    def name(self, token: int) -> str:
        """How tokenizer.json writes a token."""
        return str(self._inner.id_to_token(token))

    def save(self, folder: Path, context: int | None = None) -> None:
        """Into a staged folder: files that transformers' AutoTokenizer loads with the same ids."""
        self._inner.save(str(folder / TOKENIZER_FILES[0]))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **dict.fromkeys(("bos_token", "eos_token", "pad_token"), self._inner.id_to_token(self.end_of_text)),
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
        }
        for name in (UNKNOWN, WORDPIECE_UNKNOWN):
            if name in self._specials:
                settings["unk_token"] = name
        files.write_json(folder / TOKENIZER_FILES[1], settings | ({"model_max_length": context} if context else {}))

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """From a folder, or from the file itself."""
        import tokenizers

        path = folder if folder.is_file() else folder / TOKENIZER_FILES[0]
        try:
            if path.stat().st_size > LARGEST:
                raise UserError("too large for a tokenizer; is it the right file?")
            description = tamed(files.read_small(path))
            with panics_untold():
                tokenizer = cls(tokenizers.Tokenizer.from_str(description))
                tokenizer.encode_batch([PROBE, *PROBE])
            check_entries(tokenizer._inner.get_vocab(), path)
            return tokenizer
        except FileNotFoundError:
            raise UserError(f"{folder}: has no {TOKENIZER_FILES[0]}") from None
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except UserError as error:
            raise UserError(f"{path}: {error.mistakes[0].removeprefix(f'{path}: ')}") from None
        except BaseException as error:  # tokenizers raises plain Exceptions, and a panic in its Rust is not even one
            raise UserError(f"{path}: not a tokenizer ({error})") from None

    def encodes_like(self, other: Tokenizer) -> bool:
        """Whether the two make the same ids of the same text, though their files may differ in other things."""

        def meaning(tokenizer: Tokenizer) -> list[Any]:
            whole = json.loads(tokenizer.to_json())
            cuts = [whole["normalizer"], whole["pre_tokenizer"], whole["model"]["type"], whole["model"].get("merges")]
            return [tokenizer._inner.get_vocab(), tokenizer.end_of_text, tokenizer.opening, *cuts]

        return self.fingerprint == other.fingerprint or meaning(self) == meaning(other)

    def _special_or_text(self, piece: str) -> list[int]:
        return [self._specials[piece]] if piece in self._specials else self.encode(piece)

    @cached_property
    def _specials(self) -> dict[str, int]:
        added = self._inner.get_added_tokens_decoder().items()
        return {each.content: token for token, each in added if each.special}

    @cached_property
    def _inserts_blanks(self) -> bool:
        return type(self._inner.decoder).__name__ == "WordPiece"

    @cached_property
    def _piece_bytes(self) -> list[bytes]:
        special = set(self._specials.values())
        byte_level = type(self._inner.decoder).__name__ == "ByteLevel"
        to_byte = {letter: byte for byte, letter in enumerate(byte_letters())}
        pieces = []
        for token in range(self.vocab_size):
            piece = self._inner.id_to_token(token) or ""
            if token in special:
                pieces.append(b"")
            elif byte_level:
                if not to_byte.keys() >= set(piece):
                    raise UserError(f"tokenizer.json: entry {piece[:40]!r} is not in the letters of bytes")
                pieces.append(bytes(to_byte[letter] for letter in piece))
            elif self._inserts_blanks:
                pieces.append(self._inner.decoder.decode(["x", piece])[1:].encode())
            else:
                pieces.append(piece.encode())
        return pieces


class TextStream:
    """Ids come one by one; text goes out as soon as it is whole characters."""

    def __init__(self, tokenizer: Tokenizer, continues: bool) -> None:
        self._tokenizer = tokenizer
        self._at_beginning = not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(self.bytes_of(token))

    def bytes_of(self, token: int) -> bytes:
        piece = self._tokenizer.piece(token, self._at_beginning)
        self._at_beginning = self._at_beginning and not piece
        return piece

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str], total_bytes: int) -> Tokenizer:
    """Learn a vocabulary from texts."""
    size = config.vocab_size or (WORDPIECE_ENTRIES if config.kind == "wordpiece" else vocab_size_for(total_bytes))
    return Tokenizer(KINDS[config.kind](texts, config, size))


# Kinds whose vocabulary comes from the text; what an id means is not known before.
LEARNED = ("bpe", "char", "wordpiece")


def refuse_ids(kind: str, where: str) -> None:
    """Ids from elsewhere mean nothing to a vocabulary that is yet to be learned."""
    if kind in LEARNED:
        made = ", ".join(each for each in KINDS if each not in LEARNED)
        raise UserError(
            f"{where}: holds ids, which mean nothing to a {kind} vocabulary yet to be learned; "
            f"name the one that made them: --tokenizer.kind with one of {made}"
        )


def vocab_size_for(text_bytes: int) -> int:
    """A power of two near the square root of the text: 1 MB gives 1,024, 12 MB 4,096, 1 GB 32,768."""
    return int(min(max(2 ** round(math.log2(1.2 * math.sqrt(max(text_bytes, 1)))), 512), 32_768))


def train_bpe(texts: Iterable[str], _config: TokenizerConfig, vocab_size: int) -> tokenizers.Tokenizer:
    """Byte-level byte-pair encoding: any text goes in and comes out unchanged."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(byte_letters()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(learnable(texts, LETTERS_OR_DIGITS), trainer)
    return tokenizer


def train_char(texts: Iterable[str], _config: TokenizerConfig, _size: int) -> tokenizers.Tokenizer:
    """One id for each character of the texts, in the order of Unicode, and one for all others."""
    letters = sorted(set().union(*map(set, texts)))
    return _without_merges([*letters, END_OF_TEXT, UNKNOWN], byte_level=False)


def byte_tokenizer(_texts: Iterable[str], _config: TokenizerConfig, _size: int) -> tokenizers.Tokenizer:
    """The id of a byte is its value; nothing is learned."""
    return _without_merges([*byte_letters(), END_OF_TEXT], byte_level=True)


def gpt2_tokenizer(_texts: Iterable[str], config: TokenizerConfig, _size: int) -> tokenizers.Tokenizer:
    """GPT-2's own vocabulary; nothing is learned."""
    letters = dict(enumerate(byte_letters()))
    ranks = gpt2_ranks(config.ranks_file)
    written = {token: token.decode("latin-1").translate(letters) for token in ranks}
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    return _bytes_with_merges(vocabulary, [(written[one], written[other]) for one, other in merges_of(ranks)])


def byte_level_bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """From tokens and merges as GPT-2 writes them."""
    return Tokenizer(_bytes_with_merges(vocabulary, merges))


def _bytes_with_merges(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def given_tokenizer(_texts: Iterable[str], config: TokenizerConfig, _size: int) -> tokenizers.Tokenizer:
    """A model's own; nothing is learned."""
    return Tokenizer.load(Path(str(config.file)).expanduser())._inner


KINDS: dict[str, Callable[[Iterable[str], TokenizerConfig, int], tokenizers.Tokenizer]] = {
    "bpe": train_bpe,
    "char": train_char,
    "byte": byte_tokenizer,
    "wordpiece": lambda texts, config, size: train_wordpiece(texts, size, config.as_published),
    "gpt2": gpt2_tokenizer,
    "file": given_tokenizer,
}


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

"""Text becomes ids, and ids become text again.

In: text, and a kind of tokenizer to learn from it.  Out: ids below `vocab_size`, one of which ends a document.
The format is Hugging Face's tokenizer.json, so that a model folder speaks to every program that reads it. A kind is
one function that builds such a tokenizer, as in text/vocabularies.py, and its entry in KINDS. Text that looks like a
special token stays text. What ends a document is a token that is known for it, else what tokenizer_config.json calls
the end of a text, else what the template puts after one.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.base.settings import Settings
from hornbook.text.description import LARGEST, PROBE, check_entries, panics_untold, tamed
from hornbook.text.encodings import ENCODINGS, encoding_named
from hornbook.text.gpt2 import byte_letters
from hornbook.text.vocabularies import END_OF_TEXT, UNKNOWN, all_bytes, characters, gpt2, train_bpe
from hornbook.text.wordpiece import WORDPIECE_END, WORDPIECE_UNKNOWN, train_wordpiece

if TYPE_CHECKING:
    import tokenizers
    from numpy.typing import NDArray

WORDPIECE_ENTRIES = 40_000
# What ends a document, or stands between two, here and in vocabularies of other models. These come before what a folder
# tells, which in a model for chats is the end of a turn.
ENDS = (END_OF_TEXT, WORDPIECE_END, "<|end_of_text|>", "<|bos|>")
USUAL_ENDS = ("</s>", "<eos>")
# Where tokenizer_config.json tells what ends a document in a vocabulary of characters alone: one of them, such as the
# end of a line. A model that says it goes on.
DOCUMENT_END = "document_end"
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # how a vocabulary of characters writes bytes for those that it does not have
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class Tokenizer:
    """A tokenizer.json in memory."""

    def __init__(self, inner: tokenizers.Tokenizer, told_end: str | None = None, goes_on: bool = False) -> None:
        inner.encode_special_tokens = True  # "<|endoftext|>" in a text is thirteen characters, not the end of it
        self._inner = inner
        probe = inner.encode(PROBE)
        of_text = [place for place, added in enumerate(probe.special_tokens_mask) if not added] or [0]
        # What a template puts before each text; what it puts after is the end of the text, which all documents get.
        self.opening: list[int] = probe.ids[: of_text[0]]
        names = [*ENDS, *([told_end] if told_end else []), *probe.tokens[of_text[-1] + 1 :], *USUAL_ENDS]
        known = [(name, token) for name in names if (token := inner.token_to_id(name)) is not None]
        if not known:
            raise UserError(f"has no {END_OF_TEXT} token, which ends a document, nor tells another that does")
        end, self.end_of_text = known[0]
        self._told_end = "" if end in ENDS else end
        self.stop: int | None = None if goes_on else self.end_of_text
        """What ends a text that is generated, where anything does."""

    @property
    def vocab_size(self) -> int:
        return int(self._inner.get_vocab_size())

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256((self.to_json() + self._told_end).encode()).hexdigest()

    def to_json(self) -> str:
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
        return type(self._inner.decoder).__name__ != "WordPiece"

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """The ids of a text. A special token's name in it is text like any other, unless `specials` asks for it."""
        if specials and self._specials:
            pieces = re.split("(" + "|".join(map(re.escape, self._specials)) + ")", text)
            known = self._specials
            return [each for piece in pieces for each in ([known[piece]] if piece in known else self.encode(piece))]
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
        if self._first_differs:
            return b"".join(map(self.stream().bytes_of, ids))
        pieces = self._piece_bytes
        return b"".join(pieces[token] for token in ids)

    def stream(self, continues: bool = False) -> TextStream:
        """Ids to text one by one; where it `continues` a text, a word comes with the blank before it."""
        return TextStream(self, continues)

    def piece(self, token: int, first: bool = False) -> bytes:
        """The bytes that a token stands for, at the beginning of a text or in it; none for a special token."""
        piece = self._piece_bytes[token]
        if first and piece and self._first_differs and not self._is_byte(name := self.name(token)):
            return str(self._inner.decoder.decode([name])).encode()
        return piece

    def name(self, token: int) -> str:
        """How tokenizer.json writes a token."""
        return str(self._inner.id_to_token(token))

    def save(self, folder: Path, context: int | None = None) -> None:
        """Into a staged folder: files that transformers' AutoTokenizer loads with the same ids."""
        self._inner.save(str(folder / TOKENIZER_FILES[0]))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **dict.fromkeys(
                (DOCUMENT_END,) if self.stop is None else ("bos_token", "eos_token", "pad_token"),
                self._inner.id_to_token(self.end_of_text),
            ),
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
                tokenizer = cls(tokenizers.Tokenizer.from_str(description), *_told_end(path))
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

    @cached_property
    def _specials(self) -> dict[str, int]:
        added = self._inner.get_added_tokens_decoder().items()
        return {each.content: token for token, each in added if each.special}

    @cached_property
    def _first_differs(self) -> bool:
        """Whether a token stands for other text at the beginning, where mostly a word comes without its blank."""
        return type(self._inner.decoder).__name__ not in ("ByteLevel", "Fuse", "NoneType")

    @cached_property
    def _falls_back_to_bytes(self) -> bool:
        return self._first_differs and self._inner.decoder.decode(["<0x41>"]) == "A"

    def _is_byte(self, name: str) -> bool:
        return self._falls_back_to_bytes and _BYTE.fullmatch(name) is not None

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
            elif self._is_byte(piece):
                pieces.append(bytes.fromhex(piece[3:5]))
            elif self._first_differs:
                pieces.append(self._inner.decoder.decode(["x", piece])[1:].encode())
            else:
                pieces.append(piece.encode())
        return pieces


def _told_end(path: Path) -> tuple[str | None, bool]:
    """What tokenizer_config.json, beside a tokenizer.json, calls the end of a text, and whether one that is generated
    goes on after it."""
    with contextlib.suppress(UserError):
        settings = files.read_json(path.with_name(TOKENIZER_FILES[1]))
        told = settings.get("eos_token", settings.get(DOCUMENT_END))
        name = told.get("content") if isinstance(told, dict) else told
        return name if isinstance(name, str) else None, "eos_token" not in settings and DOCUMENT_END in settings
    return None, False


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
        self._at_beginning = self._at_beginning and not self._tokenizer.piece(token)
        return piece

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


def vocab_size_for(text_bytes: int) -> int:
    """A power of two near the square root of the text: 1 MB gives 1,024, 12 MB 4,096, 1 GB 32,768."""
    return int(min(max(2 ** round(math.log2(1.2 * math.sqrt(max(text_bytes, 1)))), 512), 32_768))


@dataclass(frozen=True)
class Kind:
    build: Callable[[Iterable[str], TokenizerConfig, int], Tokenizer]
    """Takes texts, knobs, and how many entries would fit the text."""
    learned: bool = False
    """Whether its vocabulary comes from the text: what an id means is not known before."""
    sized: bool = False
    """Whether the number of its entries can be chosen."""
    ranked: bool = False
    """Whether it is made from ranks that tiktoken publishes."""


KINDS = {
    "bpe": Kind(lambda texts, _, size: Tokenizer(train_bpe(texts, size)), learned=True, sized=True),
    "char": Kind(lambda texts, *_: Tokenizer(characters(texts)), learned=True),
    "byte": Kind(lambda *_: Tokenizer(all_bytes())),
    "wordpiece": Kind(
        lambda texts, config, _: Tokenizer(
            train_wordpiece(texts, config.vocab_size or WORDPIECE_ENTRIES, config.as_published)
        ),
        learned=True,
        sized=True,
    ),
    "gpt2": Kind(lambda _, config, size: Tokenizer(gpt2(config.ranks_file)), ranked=True),
    # Its ids are GPT-2's.
    "r50k_base": Kind(lambda _, config, size: Tokenizer(gpt2(config.ranks_file)), ranked=True),
    **{
        name: Kind(lambda _, config, size: Tokenizer(encoding_named(config.kind, config.ranks_file)), ranked=True)
        for name in ENCODINGS
        if name != "r50k_base"
    },
    "file": Kind(lambda _, config, size: Tokenizer.load(Path(str(config.file)).expanduser())),
}
LEARNED = tuple(name for name, kind in KINDS.items() if kind.learned)
RANKED = tuple(name for name, kind in KINDS.items() if kind.ranked)
if TYPE_CHECKING:
    KindName = str
else:
    KindName = Literal[tuple(KINDS)]


class TokenizerConfig(Settings):
    kind: KindName = "bpe"
    """How text is cut into tokens."""
    vocab_size: int | None = Field(None, ge=257, le=1_000_000)
    """Entries of a trained vocabulary; for bpe chosen from the amount of text when not given, for wordpiece 40,000."""
    train_bytes: int = Field(64_000_000, ge=1)
    """At most so much text is read to learn the vocabulary from."""
    ranks_file: str | None = None
    """For gpt2, a local copy of r50k_base.tiktoken, and so for the others by their names; fetched once when not
    given."""
    file: str | None = None
    """For file: a tokenizer.json, or the folder of a model that has one."""
    as_published: bool = False
    """For wordpiece: keep control characters, and read special tokens out of text, as the system it comes from did."""

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if (self.file is not None) != (self.kind == "file"):
            yield "file", "a tokenizer.json goes with --tokenizer.kind file, and that with one"
        if self.ranks_file is not None and self.kind not in RANKED:
            yield "ranks_file", f"ranks make {', '.join(RANKED)}; leave it out, or --tokenizer.kind with one of these"
        if self.as_published and self.kind != "wordpiece":
            yield (
                "as_published",
                "only wordpiece was published in two ways; leave it out, or --tokenizer.kind wordpiece",
            )
        if self.vocab_size is not None and not KINDS[self.kind].sized:
            yield (
                "vocab_size",
                f"a {self.kind} tokenizer has the vocabulary it needs; leave it out, or --tokenizer.kind bpe",
            )


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str], total_bytes: int) -> Tokenizer:
    """Learn a vocabulary from texts."""
    return KINDS[config.kind].build(texts, config, config.vocab_size or vocab_size_for(total_bytes))


def refuse_ids(kind: str, where: str) -> None:
    """Ids from elsewhere mean nothing to a vocabulary that is yet to be learned."""
    if kind in LEARNED:
        made = ", ".join(each for each in KINDS if each not in LEARNED)
        raise UserError(
            f"{where}: holds ids, which mean nothing to a {kind} vocabulary yet to be learned; "
            f"name the one that made them: --tokenizer.kind with one of {made}"
        )

"""Many documents become one array of ids, as fast as the machine can.

In: a tokenizer, and documents as UTF-8.  Out: their ids one after another, and where each one's begin.
Byte-level BPE goes through gigatoken where it is installed: more than ten times as fast as the others, and young. So
it is kept at arm's length: special tokens are not given to it, what it encodes is compared with `tokenizers` on a
sample of every batch, and where it fails or differs, `EncoderFailed` says so and the work is done over without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hornbook.base.machine import cores_to_use
from hornbook.text.tokenizer import Tokenizer

FIRST_SAMPLE_BYTES = 131_072
SAMPLE_BYTES = 4_096
# gigatoken remembers every word that it meets, at 60 bytes or so, and forgets none: after so much text it begins anew.
FORGET_AFTER_BYTES = 2_000_000_000
# Its time for one word grows faster than the word: 5 MB of DNA take 4.2 s at once, and 0.6 s in stretches of so many
# bytes. Where two meet, all bytes within a quarter of that are of one word.
STRETCH = 65_536
# Tokens before the end of a stretch that may be others than in the whole, and how many more are tried.
UNSURE, TRIED = 8, 16

_SIGNS = re.compile(r"(?:[^\w\s]|_)+")

Ids = NDArray[Any]
Offsets = NDArray[np.int64]


class EncoderFailed(Exception):  # noqa: N818
    """The fast encoder cannot be relied on; what it gave is to be thrown away."""


class Encoder(Protocol):
    name: str

    def encode(self, documents: Sequence[bytes]) -> tuple[Ids, Offsets]:
        """Ids of all documents, and n + 1 places: document i has ids[places[i] : places[i + 1]]."""
        ...


def fastest_encoder(tokenizer: Tokenizer) -> Encoder:
    """The fastest there is for this tokenizer on this machine."""
    if tokenizer.ids_are_bytes:
        return _Bytes()
    if tokenizer.has_gpt2_pieces and has_gigatoken():
        return _Gigatoken(tokenizer)
    return SlowEncoder(tokenizer)


def has_gigatoken() -> bool:
    try:
        import gigatoken  # noqa: F401
    except ImportError:
        return False
    return True


class SlowEncoder:
    """`tokenizers` itself: any kind, and the judge of the others."""

    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, documents: Sequence[bytes]) -> tuple[Ids, Offsets]:
        found = [np.asarray(ids, np.uint32) for ids in self._tokenizer.encode_batch([d.decode() for d in documents])]
        return np.concatenate([np.empty(0, np.uint32), *found]), _places([len(ids) for ids in found])


class _Bytes:
    """The ids of a byte tokenizer are the bytes."""

    name = "bytes"

    def encode(self, documents: Sequence[bytes]) -> tuple[Ids, Offsets]:
        return np.frombuffer(b"".join(documents), np.uint8), _places([len(each) for each in documents])


class _Gigatoken:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._judge = SlowEncoder(tokenizer)
        self._sample_bytes = FIRST_SAMPLE_BYTES
        # Each of its threads learns the words of a text anew, and here one thread reads beside it.
        self._in_parallel = cores_to_use() > 2
        self.name = "gigatoken"
        self._description = tokenizer.to_json()
        self._begin()

    def _begin(self) -> None:
        import gigatoken

        self._bytes_met = 0
        with _contained():
            self._inner = gigatoken.Tokenizer.from_json(_without_special_tokens(self._description))

    def encode(self, documents: Sequence[bytes]) -> tuple[Ids, Offsets]:
        if self._bytes_met >= FORGET_AFTER_BYTES:
            self._begin()
        self._bytes_met += sum(map(len, documents))
        with _contained():
            ids, places = self._encode(documents)
            for place, document in self._sample(documents):
                found = self._encode([document])[0] if place is None else ids[places[place] : places[place + 1]]
                if not np.array_equal(found, self._judge.encode([document])[0]):
                    raise EncoderFailed("gigatoken differs from tokenizers on a sample of this text")
        self._sample_bytes = SAMPLE_BYTES
        return ids, places

    def _encode(self, documents: Sequence[bytes]) -> tuple[Ids, Offsets]:
        seams = {place: found for place, document in enumerate(documents) if (found := _seams(document))}
        if not seams:
            return self._encode_at_once(documents)
        ids, places = self._encode_at_once([b"" if place in seams else each for place, each in enumerate(documents)])
        long = {place: self._encode_in_stretches(documents[place], found) for place, found in seams.items()}
        parts = np.split(ids, [places[place] for place in long])
        joined = [parts[0], *(each for pair in zip(long.values(), parts[1:], strict=True) for each in pair)]
        lengths = np.diff(places)
        lengths[list(long)] = [len(each) for each in long.values()]
        return np.concatenate(joined), _places(lengths.tolist())

    def _encode_in_stretches(self, document: bytes, seams: Sequence[int]) -> Ids:
        """The ids of the whole: byte pairs merge alike wherever any two tokens side by side stood so in some text. So a
        stretch ends between two tokens, and the next has to begin with the second of them."""
        found: list[Ids] = []
        begin, second = 0, None
        for seam in [*seams, None]:
            ids = self._encode_at_once([document[begin:seam]])[0]
            if second is not None and ids[0] != second:
                break
            if seam is None:
                return np.concatenate([*found, ids])
            if kept := self._sure(document, seam, ids):
                found.append(ids[:kept])
                second = ids[kept]
                begin = seam - int(self._sizes[ids[kept:]].sum())
        return self._encode_at_once([document])[0]

    def _sure(self, document: bytes, seam: int, ids: Ids) -> int:
        """After how many tokens the next stretch can begin; 0 where none is found."""
        for kept in range(len(ids) - UNSURE, max(len(ids) - UNSURE - TRIED, 0), -1):
            begin = seam - int(self._sizes[ids[kept:]].sum())
            if begin < seam - STRETCH // 4:
                break
            if document[begin] & 0xC0 == 0x80:  # inside of a character
                continue
            if self._encode_at_once([document[begin : begin + STRETCH // 4]])[0][0] == ids[kept]:
                return kept
        return 0

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        return np.array([len(self._tokenizer.piece(token)) for token in range(self._tokenizer.vocab_size)])

    def _encode_at_once(self, documents: Sequence[bytes]) -> tuple[Ids, Offsets]:
        layout = self._inner.encode_batch(list(documents), parallel=self._in_parallel).layout.to_ListOffsetArray64(True)
        places = np.asarray(layout.offsets.data)
        return np.asarray(layout.content.data)[: places[-1]], places

    def _sample(self, documents: Sequence[bytes]) -> list[tuple[int | None, bytes]]:
        """Documents from all over the batch, with their numbers, and a piece of one that is too long to take whole."""
        room, chosen, too_long = self._sample_bytes, [], b""
        for place in range(0, len(documents), max(len(documents) // 64, 1)):
            if len(documents[place]) <= room:
                room -= len(documents[place])
                chosen.append((place, documents[place]))
            else:
                too_long = documents[place]
        piece = too_long[len(too_long) // 2 :][:room].decode(errors="ignore").encode()
        return [*chosen, (None, piece)]


def _seams(document: bytes) -> list[int]:
    """Where a document's long words can be cut into stretches: before a character."""
    found, around = [], STRETCH // 4
    for seam in range(STRETCH, len(document) - around, STRETCH):
        # Nearly all places are told to be none by their first bytes.
        if _is_one_word(document[seam : seam + 64]) and _is_one_word(document[seam - around : seam + around]):
            found.append(next(place for place in range(seam, seam + 4) if document[place] & 0xC0 != 0x80))
    return found


def _is_one_word(data: bytes) -> bool:
    """Whether bytes are all of one run as GPT-2 cuts a text: of letters, digits, blanks or other signs."""
    text = data.decode(errors="ignore")
    return text.isalpha() or text.isdecimal() or not text.strip(" \t\n\r") or _SIGNS.fullmatch(text) is not None


def _without_special_tokens(description: str) -> str:
    """A tokenizer.json without its added tokens, cut out of it: to parse all of it takes a tenth of a second."""
    key = '"added_tokens":'
    begin = description.index(key) + len(key)
    _, end = json.JSONDecoder().raw_decode(description, begin)
    return f"{description[:begin]}[]{description[end:]}"


class _contained:  # noqa: N801
    """Any failure of the library, a panic in its Rust included, is `EncoderFailed`."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError, EncoderFailed)):
            raise EncoderFailed(f"gigatoken failed ({type(error).__name__}: {error})") from error


def _places(lengths: Sequence[int]) -> Offsets:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)

"""GPT-2's vocabulary, from the ranks that tiktoken publishes; and how those of its other vocabularies are read.

In: r50k_base.tiktoken, a line `BASE64-OF-A-TOKEN RANK` for each token.  Out: the tokens with their ids, and the pairs
that they are merged from, as bytes. The file does not tell the pairs, but the ranks do: a token is made of the two
that are left when all tokens of lower rank were merged in it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from binascii import a2b_base64
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hornbook.base import files
from hornbook.base.console import Progress, count
from hornbook.base.download import fetch, is_there
from hornbook.base.errors import UserError

RANKS_AT = "https://openaipublic.blob.core.windows.net/encodings"
# Of the places at which GPT-2's tokens of more than one byte are put together, a byte each.
MERGES_SHA256 = "e2ff5d25561ae97d2fdc48177cb3dddb1c9a2be0c6bb9e9ce1dd3b1351e483e7"


@dataclass(frozen=True)
class RanksFile:
    """As it was published."""

    name: str
    bytes: int
    sha256: str


R50K = RanksFile("r50k_base.tiktoken", 835_554, "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930")
RANKS = R50K.name

Ranks = dict[bytes, int]
Merges = list[tuple[bytes, bytes]]


def byte_letters() -> list[str]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 for itself, the others from code point 256 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def published_ranks(published: RanksFile, ranks_file: str | None) -> Ranks:
    """From a local file, else from the cache, into which they are fetched once."""
    path = Path(ranks_file).expanduser() if ranks_file else _fetched(published)
    try:
        data = path.read_bytes() if path.stat().st_size == published.bytes or path.is_dir() else b""
    except OSError as error:
        raise UserError(f"--tokenizer.ranks-file: {path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != published.sha256:
        raise UserError(
            f"{path}: not the {published.name} that was published (its sha256 differs); delete it, and fetch it"
        )
    return {a2b_base64(token): int(rank) for token, rank in map(bytes.split, data.splitlines())}


def ranks_at_hand(ranks_file: str | None) -> bool:
    """Whether GPT-2's can be read without fetching them."""
    return ranks_file is not None or is_there(files.home() / "tokenizers" / RANKS, R50K.bytes)


def merges_of(ranks: Ranks) -> Merges:
    """For each token that is merged, in the order of ranks, the two that it is merged from."""
    pairs = (_made_of(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1)
    return [pair for pair in pairs if pair is not None]


def gpt2_merges(ranks: Ranks) -> Merges:
    """Those of GPT-2's ranks, whose places are kept, since to find them takes half a second."""
    tokens = [token for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    path = files.home() / "tokenizers" / "gpt2-merges.bin"
    if (places := _kept(path)) is None:
        merges = merges_of(ranks)
        places = bytes(len(one) for one, _ in merges)
        if hashlib.sha256(places).hexdigest() == MERGES_SHA256 and _kept(path) is None:  # by no other process since
            files.make_folder(path.parent)
            if os.path.lexists(path):
                files.set_aside(path, "is not what is kept here")
            files.write_bytes(path, places)
        return merges
    return [(token[:place], token[place:]) for token, place in zip(tokens, places, strict=True)]


def _kept(path: Path) -> bytes | None:
    places = path.read_bytes() if path.is_file() else b""
    return places if hashlib.sha256(places).hexdigest() == MERGES_SHA256 else None


def _made_of(token: bytes, ranks: Ranks) -> tuple[bytes, bytes] | None:
    rank = ranks[token]
    splits = [
        (token[:place], token[place:])
        for place in range(1, len(token))
        if ranks.get(token[:place], rank) < rank and ranks.get(token[place:], rank) < rank
    ]
    # Nearly half of the tokens can come about in one way only; the others are merged to see.
    if len(splits) < 2:
        return splits[0] if splits else None
    return _merged_below(token, rank, ranks)


def _merged_below(token: bytes, limit: int, ranks: Ranks) -> tuple[bytes, bytes] | None:
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(one + other, limit) for one, other in pairwise(parts)]
        if min(pairs) == limit:
            return None  # it is met whole, or not at all
        place = pairs.index(min(pairs))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def _fetched(published: RanksFile) -> Path:
    folder, progress, name = files.home() / "tokenizers", Progress(sys.stderr), published.name
    if not is_there(folder / name, published.bytes):
        whose = "GPT-2's vocabulary" if published == R50K else f"the vocabulary {Path(name).stem}"
        progress.note(f"fetching {whose}: {count(float(published.bytes))} bytes, once; kept in {folder}")
    mend = f"name your own copy: --tokenizer.ranks-file {name}"
    url = f"{RANKS_AT}/{name}"
    path = fetch(url, folder, name, sha256=published.sha256, size=published.bytes, progress=progress, otherwise=mend)
    progress.close()
    return path

"""GPT-2's vocabulary, from the ranks that tiktoken publishes.

In: r50k_base.tiktoken, a line `BASE64-OF-A-TOKEN RANK` for each token.  Out: the tokens with their ids, and the pairs
that they are merged from, as bytes. The file does not tell the pairs, but the ranks do: a token is made of the two
that are left when all tokens of lower rank were merged in it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from binascii import a2b_base64
from itertools import pairwise
from pathlib import Path

from hornbook.base import files
from hornbook.base.console import Progress, count
from hornbook.base.download import fetch, is_there
from hornbook.base.errors import UserError

RANKS = "r50k_base.tiktoken"
RANKS_AT = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
RANKS_BYTES = 835_554
# Of the places at which GPT-2's tokens of more than one byte are put together, a byte each.
MERGES_SHA256 = "e2ff5d25561ae97d2fdc48177cb3dddb1c9a2be0c6bb9e9ce1dd3b1351e483e7"
RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"

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


def gpt2_ranks(ranks_file: str | None) -> Ranks:
    """The published ranks: from a local file, else from the cache, into which they are fetched once."""
    path = Path(ranks_file).expanduser() if ranks_file else _fetched_ranks()
    try:
        data = path.read_bytes() if path.stat().st_size == RANKS_BYTES or path.is_dir() else b""
    except OSError as error:
        raise UserError(f"--tokenizer.ranks-file: {path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != RANKS_SHA256:
        raise UserError(f"{path}: not the {RANKS} that was published (its sha256 differs); delete it, and fetch it")
    return {a2b_base64(token): int(rank) for token, rank in map(bytes.split, data.splitlines())}


def ranks_at_hand(ranks_file: str | None) -> bool:
    """Whether the ranks can be read without fetching them."""
    return ranks_file is not None or is_there(files.home() / "tokenizers" / RANKS, RANKS_BYTES)


def merges_of(ranks: Ranks) -> Merges:
    """For each token of more than one byte, in the order of ranks, the two that it is merged from."""
    tokens = [token for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    path = files.home() / "tokenizers" / "gpt2-merges.bin"
    places = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(places).hexdigest() != MERGES_SHA256:
        places = bytes(len(_made_of(token, ranks)[0]) for token in tokens)
        if hashlib.sha256(places).hexdigest() == MERGES_SHA256:  # kept, since it takes half a second
            files.make_folder(path.parent)
            if os.path.lexists(path):
                files.set_aside(path, "is not what is kept here")
            files.write_bytes(path, places)
    return [(token[:place], token[place:]) for token, place in zip(tokens, places, strict=True)]


def _made_of(token: bytes, ranks: Ranks) -> tuple[bytes, bytes]:
    rank = ranks[token]
    splits = [
        (token[:place], token[place:])
        for place in range(1, len(token))
        if ranks.get(token[:place], rank) < rank and ranks.get(token[place:], rank) < rank
    ]
    # Nearly half of the tokens can come about in one way only; the others are merged to see.
    return splits[0] if len(splits) == 1 else _merged_below(token, rank, ranks)


def _merged_below(token: bytes, limit: int, ranks: Ranks) -> tuple[bytes, bytes]:
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(one + other, limit) for one, other in pairwise(parts)]
        place = pairs.index(min(pairs))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def _fetched_ranks() -> Path:
    folder, progress = files.home() / "tokenizers", Progress(sys.stderr)
    if not is_there(folder / RANKS, RANKS_BYTES):
        progress.note(f"fetching GPT-2's vocabulary: {count(float(RANKS_BYTES))} bytes, once; kept in {folder}")
    mend = f"name your own copy: --tokenizer.ranks-file {RANKS}"
    path = fetch(RANKS_AT, folder, RANKS, sha256=RANKS_SHA256, size=RANKS_BYTES, progress=progress, otherwise=mend)
    progress.close()
    return path

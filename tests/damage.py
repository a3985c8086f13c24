"""Damage, of which every file can suffer the same kinds; and what a JSON file can suffer besides."""

from __future__ import annotations

import gzip
import json
import pickle
import random
from collections.abc import Iterator
from typing import Any

OTHER_KINDS = {
    "a pickle": pickle.dumps({"a": [1, 2, 3]}),
    "gzip": gzip.compress(b"{}", mtime=0),
    "zip": b"PK\x03\x04" + bytes(26),
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "a page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
    "one byte": b"\xff",
    "blanks": b" \n" * 500,
    "open brackets": b"[" * 100_000,
    "open braces": b'{"a":' * 50_000,
    "a number": b"9" * 10_000,
    "a word": b"null",
    "an array": b"[]",
    "an empty object": b"{}",
    "a string": b'"text"',
}


def damaged(data: bytes) -> dict[str, bytes]:
    """What becomes of a file: cut, overwritten, with more than there was; or of another kind altogether."""
    draw = random.Random(len(data))
    size = len(data)
    zeroed = size // 3
    found = {
        "empty": b"",
        "nothing but zeros": bytes(size),
        "noise": draw.randbytes(size),
        "zeros in the middle": data[:zeroed] + bytes(min(64, size - zeroed)) + data[zeroed + 64 :],
        "a block lost": data[: size // 2] + data[size // 2 + 7 :],
        "backwards": data[::-1],
        "twice": data + data,
        "more at the end": data + b"garbage",
        "more at the beginning": b"\xef\xbb\xbf\0" + data,
    }
    cuts = {1, 2, 7, 8, 9, size // 4, size // 2, size - 1, size - 2} | {draw.randrange(1, size) for _ in range(8)}
    found |= {f"cut after {length}": data[:length] for length in sorted(cuts) if 0 < length < size}
    return found | OTHER_KINDS


def flipped(data: bytes, count: int) -> dict[str, bytes]:
    """The same with one bit turned, here and there; the first bytes, which tell the kind, more often."""
    draw = random.Random(count + len(data))
    found = {}
    for number in range(count):
        place = draw.randrange(min(len(data), 64 if number % 3 == 0 else len(data)))
        bit = draw.randrange(8)
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        found[f"bit {bit} of byte {place}"] = bytes(changed)
    return found


VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "-1": -1,
    "a half": 0.5,
    "a large number": 10**30,
    "infinity": float("inf"),
    "a long text": "x" * 100_000,
    "a way up": "../../../etc/passwd",
    "half a character": "\ud800",
    "an array": [1],
    "an object": {"a": {}},
}


def misread(value: Any, most: int = 400) -> Iterator[tuple[str, Any]]:
    """A JSON value with one part of it missing, or of another kind; of a large one some parts only."""
    places = list(_places(value))
    draw = random.Random(len(places))
    chosen = [(place, what) for place in places for what in ("missing", *VALUES)]
    for place, what in draw.sample(chosen, min(most, len(chosen))):
        copy = json.loads(json.dumps(value))
        inner = copy
        for step in place[:-1]:
            inner = inner[step]
        if what == "missing":
            del inner[place[-1]]
        else:
            inner[place[-1]] = VALUES[what]
        yield f"{'.'.join(map(str, place))}: {what}", copy


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for number, (step, inner) in enumerate(steps):
        if number < 12:
            yield (*at, step)
            yield from _places(inner, (*at, step))

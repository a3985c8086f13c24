from __future__ import annotations

import random

import pytest

from hornbook.exchange.crc32c import FEW, LANES, crc32c
from yardstick import within


@pytest.mark.parametrize(
    ("data", "published"),  # by RFC 3720, and the check value of catalogues
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_sums(data: bytes, published: int) -> None:
    assert crc32c(data) == published


def bit_by_bit(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    "size", [FEW - 1, FEW, FEW + 1, 4 * LANES * 5 - 1, 4 * LANES * 5, 4 * LANES * 5 + 3, 100_003, 500_000]
)
def test_many_bytes_at_once_sum_to_the_same(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert crc32c(data) == bit_by_bit(data)
    assert crc32c(memoryview(bytearray(b"x" + data))[1:]) == bit_by_bit(data)


def test_half_a_gigabyte_would_take_seconds() -> None:
    data = bytes(64 << 20)
    crc32c(data)
    with within(2):  # 0.1 s on an idle core of 2021
        crc32c(data)

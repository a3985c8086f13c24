"""CRC-32C, the sum by which TensorFlow's files are checked.

In: bytes.  Out: their sum.
Byte by byte, Python sums 15 MB/s. But the sum is linear: words can be dealt out to thousands of lanes as one deals
cards, so that numpy takes a row of them at once, and the lanes' sums be put together in the end. That is 700 MB/s on
one core.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78
BEGIN = 0xFFFFFFFF
LANES = 4096
ROW = 4 * LANES
FEW = 1 << 16  # bytes, for which setting up the lanes takes longer than it saves
Words = NDArray[np.uint32]


def crc32c(data: bytes | bytearray | memoryview) -> int:
    in_lanes = len(data) // ROW * ROW if len(data) >= FEW else 0
    state = _in_lanes(memoryview(data)[:in_lanes]) if in_lanes else BEGIN
    table = _bytes_table().tolist()
    for byte in memoryview(data)[in_lanes:]:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return int(state ^ BEGIN)


def _in_lanes(data: memoryview) -> int:
    """The state after whole rows: each lane goes past a row at a time and takes in its next word."""
    rows = np.frombuffer(data, "<u4").reshape(-1, LANES)
    low, high = _tables_past_a_row()
    lanes: Words = rows[0].copy()
    lanes[0] ^= np.uint32(BEGIN)
    for row in rows[1:]:
        halves = lanes.view("<u2")
        lanes = low[halves[0::2]]
        lanes ^= high[halves[1::2]]
        lanes ^= row
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = _applied(_past(half), lanes[:half]) ^ lanes[half:]
    return int(_applied(_past(1), lanes)[0])


@functools.cache
def _bytes_table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1)
    return table


def _applied(map: Words, values: Words) -> Words:
    """A linear map, given by what it makes of each bit, on many values."""
    result = np.zeros_like(values)
    for bit in range(32):
        result ^= np.where((values >> bit) & 1, map[bit], np.uint32(0))
    return result


@functools.cache
def _past(words: int) -> Words:
    """What becomes of each bit of a state when so many words of zeros, a power of two, follow."""
    if words > 1:
        return _applied(_past(words // 2), _past(words // 2))
    state, table = np.uint32(1) << np.arange(32, dtype=np.uint32), _bytes_table()
    for _ in range(4):
        state = table[state & 0xFF] ^ (state >> 8)
    return state


@functools.cache
def _tables_past_a_row() -> tuple[Words, Words]:
    """`_past(LANES)` for every value of the lower, and of the upper, half of a state."""
    values = np.arange(1 << 16, dtype=np.uint32)
    past = _past(LANES)
    return _applied(past, values).astype("<u4"), _applied(past, values << np.uint32(16)).astype("<u4")

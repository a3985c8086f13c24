"""GPUs and their memory.

In: nothing.  Out: GPUS, a table. A GB is counted as 10^9 bytes, as vendors sell it. Chips hold 2^30 for each, so about
a fourteenth is left for the driver, its context, and what the allocator cannot use.
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class Gpu:
    name: str
    gigabytes: int
    bf16: bool = True  # fast at it; without, training computes in fp32

    @property
    def bytes(self) -> int:
        return self.gigabytes * GB


GPUS = (
    Gpu("GTX 1080 Ti", 11, bf16=False),
    Gpu("P100", 16, bf16=False),
    Gpu("V100", 16, bf16=False),
    Gpu("T4", 16, bf16=False),
    Gpu("Radeon VII", 16, bf16=False),
    Gpu("RX 6900 XT", 16, bf16=False),
    Gpu("Quadro RTX 8000", 48, bf16=False),
    Gpu("RTX 3080", 10),
    Gpu("RTX 3090", 24),
    Gpu("A100 40 GB", 40),
    Gpu("A100 80 GB", 80),
    Gpu("RTX 4060", 8),
    Gpu("RTX 4070", 12),
    Gpu("RTX 4080", 16),
    Gpu("RTX 4090", 24),
    Gpu("L4", 24),
    Gpu("L40S", 48),
    Gpu("RTX 6000 Ada", 48),
    Gpu("RTX 5090", 32),
    Gpu("H100", 80),
    Gpu("H200", 141),
    Gpu("MI300X", 192),
    Gpu("B200", 180),  # of the 192 on the chip
)

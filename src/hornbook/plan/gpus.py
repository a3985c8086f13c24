"""GPUs, their memory and their speed.

In: nothing.  Out: GPUS, a table. A GB is counted as 10^9 bytes, as vendors sell it. Chips hold 2^30 for each, so about
a fourteenth is left for the driver, its context, and what the allocator cannot use.
Speed is the peak that vendors tell of dense products summed in fp32, in the numbers that the card is fastest in: bf16,
and there half of it in fp32, which is multiplied as TF32; on older cards fp16 or fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

from hornbook.base.errors import UserError
from hornbook.base.settings import meant

GB = 10**9
# Of its peak, what a model of some size reaches: 48% on an H200 (records/2026-11-27-h200-first-runs).
SHARE_OF_PEAK = 0.4
SECONDS_OF_A_DAY = 86_400


@dataclass(frozen=True)
class Gpu:
    name: str
    gigabytes: int
    tflops: float
    numbers: str = "bfloat16"
    """That training computes in by itself, as base/machine.py chooses them."""
    tflops_fp32: float | None = None
    """Half of the other when not given."""
    holds_2b: bool | None = None
    """Whether the page of pile-2b says that the card trains it; it says of pile-13m that all these do."""
    link: float = 32
    """GB/s at which it sends to the others of its host, one way: over NVLink where it has it, or else over PCIe."""

    @property
    def bytes(self) -> int:
        return self.gigabytes * GB

    def peak(self, numbers: str) -> float:
        """FLOPs a second in numbers of a kind."""
        fast = numbers == self.numbers or (self.numbers, numbers) == ("bfloat16", "float16")
        return 1e12 * (self.tflops if fast else self.tflops_fp32 or self.tflops / 2)

    def tokens_in_a_day(self, flops_per_token: int, numbers: str) -> float:
        return SHARE_OF_PEAK * self.peak(numbers) * SECONDS_OF_A_DAY / flops_per_token


GPUS = (
    Gpu("GTX 1080 Ti", 11, 11.3, "float32", 11.3, holds_2b=False, link=16),
    Gpu("P100", 16, 9.3, "float16", 9.3, holds_2b=False, link=16),
    Gpu("V100", 16, 125, "float16", 14, holds_2b=False, link=150),
    Gpu("T4", 16, 65, "float16", 8.1, holds_2b=False, link=16),
    Gpu("Radeon VII", 16, 13.4, "float32", 13.4, holds_2b=False, link=16),
    Gpu("RX 6900 XT", 16, 23, "float32", 23, holds_2b=False),
    Gpu("Quadro RTX 8000", 48, 130.5, "float16", 16.3, holds_2b=True, link=16),
    Gpu("RTX 3080", 10, 59.5, holds_2b=False),
    Gpu("RTX 3090", 24, 71, holds_2b=True),
    Gpu("A100 40 GB", 40, 312, holds_2b=True, link=300),
    Gpu("A100 80 GB", 80, 312, link=300),
    Gpu("RTX 4060", 8, 30.2, link=16),
    Gpu("RTX 4070", 12, 58.3),
    Gpu("RTX 4080", 16, 97.5),
    Gpu("RTX 4090", 24, 165.2),
    Gpu("L4", 24, 121),
    Gpu("L40S", 48, 362),
    Gpu("RTX 6000 Ada", 48, 364),
    Gpu("RTX 5090", 32, 209.5, link=64),
    Gpu("H100", 80, 989, link=450),
    Gpu("H200", 141, 989, link=450),
    Gpu("MI300X", 192, 1307, link=448),
    Gpu("B200", 180, 2250, link=900),  # of the 192 on the chip
)


def gpu_named(name: str) -> Gpu:
    """Whatever the case, and with or without blanks; also by the first words of its name, if no other has them."""
    wanted = _plain(name)
    found = [gpu for gpu in GPUS if _plain(gpu.name) == wanted]
    found = found or [gpu for gpu in GPUS if wanted and _plain(gpu.name).startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"--gpu {name}: which of them? {', '.join(gpu.name for gpu in found)}")
    mend = meant(name, [gpu.name for gpu in GPUS], "those that are: hornbook model demo")
    raise UserError(f"--gpu {name}: not in the table; {mend}")


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())

"""What the machine offers, and what of it to use.

In: what torch reports.  Out: a `Machine`: device, number type, threads, peak rate, memory. Torch is imported inside,
so that `hornbook --help` need not wait for it.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import os
import platform
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook.base.errors import UserError

if TYPE_CHECKING:
    import torch

# Dense bf16 peaks in TFLOP/s, of fp16 where there is no bf16, by a part of the name that torch reports.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "GH200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "A10G": 70.0,
    "T4": 65.0,
    "V100": 125.0,
}
MOST_THREADS = 256
CGROUPS = Path("/sys/fs/cgroup")  # in which a container finds its own limits
# Asks more urgently each time; SIGHUP does not.
BY_HAND = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Machine:
    """Where a run computes, and in which numbers."""

    device: str
    dtype: str
    why_dtype: str
    name: str
    cores: int
    threads: int
    memory_bytes: int
    peak_flops: float | None
    can_compile: bool

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def facts(self) -> dict[str, Any]:
        """What a checkpoint records, so that a resume elsewhere can say what differs."""
        import torch

        versions = {"python": platform.python_version(), "torch": torch.__version__}
        return {**asdict(self), **versions, "system": platform.platform()}


def share_the_cores() -> None:
    """Let torch's threads wait asleep rather than awake. To be called before torch is first imported. Where another
    program wants a core too, training is four times faster for it (records/)."""
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def signals_to_end() -> list[signal.Signals]:
    """By which a process is asked to end: Ctrl-C, SIGTERM, and SIGHUP of a terminal that is closed, unless it was
    started so as to outlive that (`nohup`)."""
    asked = [*BY_HAND]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # Windows has none
        asked.append(signal.SIGHUP)
    return asked


def cores_to_use() -> int:
    """Those of the machine that this process may run on, or as many as a container's share of their time comes to."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, _cores_of_container() or there)


def _cores_of_container() -> int | None:
    """Of a container that may use so much of all cores' time: with more threads than that, they are all halted for most
    of it. None where it may use all."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (CGROUPS / "cpu.max").read_text().split()
        return max(math.ceil(int(quota) / int(period)), 1)  # "max", where there is no limit
    with contextlib.suppress(OSError, ValueError):  # as kernels had it before
        quota, period = ((CGROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return max(math.ceil(int(quota) / int(period)), 1) if int(quota) > 0 else None
    return None


def waits_for_a_core() -> dict[str, float]:
    """Seconds that each thread of this process could have run in, but for others on its core; none where the system
    does not count them."""
    waits = {}
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # one that has just ended
            waits[thread.parent.name] = int(thread.read_text().split()[1]) / 1e9
    return waits


def choose_machine(device: str | None = None, dtype: str | None = None, threads: int | None = None) -> Machine:
    """The fastest device there is, unless one is named, and the numbers that it is fast in."""
    import torch

    if threads is not None:
        _check_threads(threads)
        torch.set_num_threads(threads)
    cores = cores_to_use()
    if threads is None and "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)
    kind = device or best_device()
    _check_device(kind)
    if kind.startswith("cuda"):
        properties = torch.cuda.get_device_properties(kind)
        name, memory = properties.name, int(properties.total_memory)
    else:
        name, memory = (processor_name() if kind == "cpu" else platform.machine()), _main_memory()
    fast, why = ("", "as asked for") if dtype else _fast_numbers(kind)
    return Machine(
        device=kind,
        dtype=dtype or fast,
        why_dtype=why,
        name=name,
        cores=cores,
        threads=torch.get_num_threads(),
        memory_bytes=memory,
        peak_flops=_peak_flops(name) if kind.startswith("cuda") else None,
        can_compile=_can_compile(kind),
    )


@contextlib.contextmanager
def fast_float_modes() -> Iterator[None]:
    """TF32 for what stays in fp32 on CUDA; tiny numbers flushed to zero on CPU, where they are many times slower."""
    import torch

    precision, flushes = torch.get_float32_matmul_precision(), _flushes_denormals()
    torch.set_float32_matmul_precision("high")
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_flush_denormal(flushes)


def _flushes_denormals() -> bool:
    """Which torch can be told, but does not tell."""
    import torch

    return bool(torch.tensor(5e-324, dtype=torch.float64) * 1 == 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Accelerators have an error of their own for it; the CPU's allocator tells it in words."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def free_cache(device: torch.device) -> None:
    """Give back what is garbage, and what the allocator holds for later, so that it can be cut otherwise."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def draw_by(seed: int, device: torch.device) -> None:
    """What is random from here on follows from this. torch.manual_seed also looks for accelerators, which for every
    step of a small model on a CPU takes as long as a tenth of it."""
    import torch

    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def mix_seed(*parts: object) -> int:
    """A seed from anything that can be printed: the same parts always give the same seed, others give another."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def peak_memory_bytes(device: str) -> int:
    """The most memory used so far: on the accelerator, or resident in this process."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    if device == "mps":
        return int(torch.mps.driver_allocated_memory())
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_in_use(device: str) -> tuple[int, int] | None:
    """Bytes of the accelerator's memory that are taken, by whomever, and that it has; None where there is no
    accelerator."""
    import torch

    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        return total - free, total
    if device == "mps":
        return torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    return None


@contextlib.contextmanager
def attention_backend(device: str) -> Iterator[None]:
    """On Hopper and later, cuDNN's attention before FlashAttention 2, which it outruns there; elsewhere torch's
    choice."""
    import torch

    if device.startswith("cuda") and torch.cuda.get_device_capability(device)[0] >= 9:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
        order += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(order, set_priority=True):
            yield
    else:
        yield


def best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def _check_threads(threads: int) -> None:
    """More than the cores may be asked for, as by a run that goes on from a larger machine; but every thread takes
    memory, and tens of thousands end the process without a word."""
    if threads > (most := max(MOST_THREADS, cores_to_use())):
        raise UserError(
            f"--train.threads: {threads:,}, and {cores_to_use()} of the machine's cores are ours to use; take at most "
            f"{most}, or leave the knob out"
        )


def _check_device(kind: str) -> None:
    import torch

    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", kind):
        raise UserError(f"--train.device: no device is called {kind}; use cpu, cuda, cuda:1 or mps")
    family, _, index = kind.partition(":")
    if family == "cuda" and int(index or 0) >= (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        raise UserError(f"--train.device: {kind} is not on this machine; leave the knob out, or use cpu")
    if family == "mps" and not torch.backends.mps.is_available():
        raise UserError("--train.device: mps is not on this machine; leave the knob out, or use cpu")


def _fast_numbers(kind: str) -> tuple[str, str]:
    """Those that the device computes fastest in, and why they: bf16, which has the range of fp32, before fp16, which
    needs a scaled loss. Emulated bf16 is slower than fp32, so it is not used."""
    import torch

    if kind.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability(kind)
        generation = f"compute capability {major}.{minor}"
        if major >= 8:
            return "bfloat16", f"{generation} computes it"
        if major == 7 or (major, minor) == (6, 0):  # 6.1, a GTX 10, has fp16 at a sixty-fourth of its speed
            return "float16", f"{generation} has no bfloat16"
        return "float32", f"{generation} is fast at nothing shorter"
    if kind == "mps":
        return "float32", "shorter numbers were never measured on MPS; --train.dtype float16 tries them"
    if _cpu_has("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        return "bfloat16", "this processor has instructions for it"
    return "float32", "this processor has no instructions for shorter ones"


def cpu_packs_bf16() -> bool:
    """Whether oneDNN multiplies matrices in bf16 that it has laid out in its own order."""
    import torch

    return not _is_held_to_avx2() and bool(
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def cpu_multiplies_int8() -> bool:
    return _cpu_has("_is_vnni_supported")


def cpu_has_amx() -> bool:
    """Whether it multiplies whole tiles of a matrix in bf16."""
    return _cpu_has("_is_amx_tile_supported")


def cpu_has_fbgemm() -> bool:
    """Whether weights can lie in memory in few bits and be multiplied by plain instructions (AVX2)."""
    import torch

    return "fbgemm" in torch.backends.quantized.supported_engines


def _cpu_has(*reports: str) -> bool:
    """Whether torch reports one of these of the processor, and may use it."""
    import torch

    return not _is_held_to_avx2() and any(getattr(torch.cpu, report, lambda: False)() for report in reports)


def _is_held_to_avx2() -> bool:
    """Torch's own switch for its kernels, beside which its reports go on telling what the processor could do. Heeded
    here, it makes a plain processor of any (make test-plain)."""
    return os.environ.get("ATEN_CPU_CAPABILITY") in ("avx2", "default")


def _can_compile(kind: str) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler on CPU, Triton on CUDA. MPS is left eager."""
    if kind == "cpu":
        return any(shutil.which(each) for each in (os.environ.get("CXX") or "g++", "g++", "clang++"))
    if kind.startswith("cuda"):
        import importlib.util

        return importlib.util.find_spec("triton") is not None
    return False


def _peak_flops(name: str) -> float | None:
    return next((1e12 * tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)


def processor_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def free_memory_bytes(device: str) -> int | None:
    """What can be taken at this moment, also of a container's share; None where nobody tells."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    with contextlib.suppress(OSError, StopIteration, ValueError):  # "max", where a container may have all
        most, used = (int((CGROUPS / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (CGROUPS / "memory.stat").read_text().splitlines()
        found.append(most - used + int(next(line.split()[1] for line in lines if line.startswith("inactive_file "))))
    return max(min(found), 0) if found else _main_memory() or None


def _main_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0

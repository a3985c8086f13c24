"""What is chosen on machines that are not at hand: torch is made to report them."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import attention
from torch.nn.attention import SDPBackend

from hornbook.base import machine
from hornbook.base.errors import UserError
from hornbook.base.machine import (
    attention_backend,
    choose_machine,
    cpu_multiplies_int8,
    fast_float_modes,
    memory_in_use,
    mix_seed,
    peak_memory_bytes,
)
from hornbook.base.process import garbage_sought_among_new_objects

GIGABYTE = 2**30


@pytest.fixture
def torch_reports(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine as torch would describe it."""

    def fake(
        cuda: tuple[int, int] | None = None,
        gpus: int = 1,
        name: str = "NVIDIA H100 80GB HBM3",
        mps: bool = False,
        cpu_bf16: str | None = None,
        held_to: str = "",
    ) -> None:
        properties = SimpleNamespace(name=name, total_memory=80 * GIGABYTE)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus if cuda is not None else 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        for report in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, report, lambda found=report == cpu_bf16: found, raising=False)
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", held_to)

    return fake


@pytest.mark.parametrize(
    ("reports", "device", "dtype"),
    [
        ({"cuda": (5, 2), "name": "NVIDIA GeForce GTX TITAN X"}, "cuda", "float32"),
        ({"cuda": (6, 0), "name": "Tesla P100-PCIE-16GB"}, "cuda", "float16"),
        ({"cuda": (6, 1), "name": "NVIDIA GeForce GTX 1080"}, "cuda", "float32"),
        ({"cuda": (7, 0), "name": "Tesla V100-SXM2-16GB"}, "cuda", "float16"),
        ({"cuda": (7, 5), "name": "Tesla T4"}, "cuda", "float16"),
        ({"cuda": (8, 0), "name": "NVIDIA A100-SXM4-80GB"}, "cuda", "bfloat16"),
        ({"cuda": (9, 0)}, "cuda", "bfloat16"),
        ({"cuda": (10, 0), "name": "NVIDIA B200"}, "cuda", "bfloat16"),
        ({"cuda": (8, 0), "mps": True}, "cuda", "bfloat16"),
        ({"mps": True}, "mps", "float32"),
        ({}, "cpu", "float32"),
        ({"cpu_bf16": "_is_avx512_bf16_supported"}, "cpu", "bfloat16"),
        ({"cpu_bf16": "_is_amx_tile_supported"}, "cpu", "bfloat16"),
        ({"cpu_bf16": "_is_amx_tile_supported", "held_to": "avx2"}, "cpu", "float32"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_the_fastest_device_and_its_numbers(
    reports: dict[str, Any], device: str, dtype: str, torch_reports: Callable[..., None]
) -> None:
    torch_reports(**reports)
    machine = choose_machine()
    assert (machine.device, machine.dtype) == (device, dtype)
    assert machine.torch_device == torch.device(device)
    assert machine.torch_dtype == getattr(torch, dtype)


def test_without_avx512_a_processor_computes_in_float32() -> None:
    """As it is, without any report made up; in make test-plain, of every processor."""
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT"):
        assert (choose_machine("cpu").dtype, cpu_multiplies_int8()) == ("float32", False)
    else:
        assert os.environ.get("ATEN_CPU_CAPABILITY") not in ("avx2", "default")


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({}, 8),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_container_computes_on_as_many_cores_as_its_share_of_time_comes_to(
    limits: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        assert choose_machine("cpu").cores == cores
        assert torch.get_num_threads() == cores
        assert choose_machine("cpu", threads=5).threads == 5
    finally:
        torch.set_num_threads(before)


def test_what_is_asked_for_is_taken(torch_reports: Callable[..., None]) -> None:
    torch_reports(cuda=(9, 0), gpus=2, mps=True)
    assert choose_machine("cpu").device == "cpu"
    assert choose_machine("mps").device == "mps"
    assert choose_machine("cuda:1").device == "cuda:1"
    assert choose_machine("cuda", "float32").dtype == "float32"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpu", "no device is called gpu"),
        ("cuda:first", "no device is called cuda:first"),
        ("cuda:-1", "no device is called cuda:-1"),
        ("cuda:2", "cuda:2 is not on this machine"),
        ("mps", "mps is not on this machine"),
    ],
)
def test_a_device_that_is_not_there_is_a_mistake(name: str, says: str, torch_reports: Callable[..., None]) -> None:
    torch_reports(cuda=(9, 0), gpus=2)
    with pytest.raises(UserError, match=says):
        choose_machine(name)


def test_cuda_on_a_machine_without_it_is_a_mistake(torch_reports: Callable[..., None]) -> None:
    torch_reports()
    with pytest.raises(UserError, match="cuda is not on this machine; leave the knob out"):
        choose_machine("cuda")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Something New", None),
    ],
)
def test_the_peak_rate_goes_by_the_name(name: str, peak: float | None, torch_reports: Callable[..., None]) -> None:
    torch_reports(cuda=(9, 0), name=name)
    machine = choose_machine()
    assert machine.peak_flops == peak
    assert (machine.name, machine.memory_bytes) == (name, 80 * GIGABYTE)


@pytest.mark.parametrize(
    ("reports", "device", "first"),
    [
        ({"cuda": (7, 5)}, "cuda", None),
        ({"cuda": (8, 9)}, "cuda", None),
        ({"cuda": (9, 0)}, "cuda", SDPBackend.CUDNN_ATTENTION),
        ({"cuda": (10, 0)}, "cuda:0", SDPBackend.CUDNN_ATTENTION),
        ({"cuda": (9, 0)}, "cpu", None),
        ({"mps": True}, "mps", None),
    ],
)
def test_hopper_and_later_try_the_attention_of_cudnn_first(
    reports: dict[str, Any],
    device: str,
    first: SDPBackend | None,
    torch_reports: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch_reports(**reports)
    asked: list[tuple[list[SDPBackend], bool]] = []
    real = attention.sdpa_kernel

    def watched(backends: list[SDPBackend], set_priority: bool = False) -> Any:
        asked.append((backends, set_priority))
        return real(backends, set_priority=set_priority)

    monkeypatch.setattr(attention, "sdpa_kernel", watched)
    q = torch.randn(1, 1, 4, 8)
    with attention_backend(device):
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    if first is None:
        assert not asked
    else:
        ((backends, in_this_order),) = asked
        assert backends[0] == first
        assert backends[-1] == SDPBackend.MATH, "something must be left that always works"
        assert in_this_order


@pytest.mark.parametrize(("compilers", "can"), [((), False), (("g++",), True), (("clang++",), True)])
def test_on_a_cpu_compiling_takes_a_cpp_compiler(
    compilers: tuple[str, ...], can: bool, torch_reports: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_reports()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name, *_, **__: f"/usr/bin/{name}" if name in compilers else None)
    assert choose_machine("cpu").can_compile is can


@pytest.mark.parametrize("triton", [True, False])
def test_on_cuda_compiling_takes_triton(
    triton: bool, torch_reports: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_reports(cuda=(9, 0), mps=True)
    found = importlib.util.find_spec("json") if triton else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: found if name == "triton" else None)
    assert choose_machine("cuda").can_compile is triton
    assert not choose_machine("mps").can_compile


def test_memory_in_use_is_what_an_accelerator_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (12 * GIGABYTE, 16 * GIGABYTE))
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3 * GIGABYTE)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10 * GIGABYTE)
    assert memory_in_use("cuda:1") == (4 * GIGABYTE, 16 * GIGABYTE)
    assert memory_in_use("mps") == (3 * GIGABYTE, 10 * GIGABYTE)
    assert memory_in_use("cpu") is None


def test_threads_are_set_and_told() -> None:
    before = torch.get_num_threads()
    try:
        assert choose_machine("cpu", threads=1).threads == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_facts_of_a_machine_can_be_written_down() -> None:
    facts = choose_machine("cpu").facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > GIGABYTE / 4


def test_tiny_numbers_are_flushed_to_zero_while_a_run_is_at_work_and_not_after() -> None:
    with fast_float_modes():
        assert torch.tensor([1e-40]).mul(1.0).item() == 0
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.tensor([1e-40]).mul(1.0).item() > 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_who_flushes_them_anyway_goes_on_to() -> None:
    torch.set_flush_denormal(True)
    try:
        with fast_float_modes():
            pass
        assert torch.tensor([1e-40]).mul(1.0).item() == 0
    finally:
        torch.set_flush_denormal(False)


def test_more_threads_than_a_process_survives_are_refused() -> None:
    before = torch.get_num_threads()
    with pytest.raises(UserError, match=r"--train\.threads: 100,000, .* take at most \d+, or leave the knob out"):
        choose_machine("cpu", threads=100_000)
    assert torch.get_num_threads() == before


def test_memory_is_told_in_bytes() -> None:
    """Systems count it in bytes or in kilobytes; torch alone takes more than 50 MB."""
    assert 50 * 2**20 < peak_memory_bytes("cpu") < choose_machine("cpu").memory_bytes


parts = st.lists(st.integers() | st.text(st.characters(exclude_characters="/"), max_size=8), min_size=1, max_size=4)


@given(parts, parts)
def test_seeds_differ_where_their_parts_do(one: list[object], other: list[object]) -> None:
    assert 0 <= mix_seed(*one) < 2**63
    assert (mix_seed(*one) == mix_seed(*other)) == (list(map(str, one)) == list(map(str, other)))


@pytest.mark.usefixtures("garbage_anywhere")
def test_new_garbage_is_collected_while_older_objects_are_not_searched() -> None:
    class Node:
        pass

    def circle() -> weakref.ref[Node]:
        one, other = Node(), Node()
        one.other, other.other = other, one  # type: ignore[attr-defined]
        return weakref.ref(one)

    before = circle()
    with garbage_sought_among_new_objects():
        assert gc.get_freeze_count() > 0
        inside = circle()
        gc.collect()
        assert before() is not None
        assert inside() is None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert before() is None


def test_seeds_that_follow_each_other_share_nothing() -> None:
    seeds = [mix_seed(1, "step", step) for step in range(20_000)]
    assert len({seed % 2**32 for seed in seeds}) > 19_990, "the lower half alone tells them apart"


def test_seeds_are_the_same_in_every_process() -> None:
    program = "from hornbook.base.machine import mix_seed; print(mix_seed(1, 'step', 2))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == mix_seed(1, "step", 2)

"""Forwards and backwards of GPT-2's smallest model beside nanoGPT's, in fp32 on a CPU: seconds and tokens a second, and
what the machine's matrix product takes.

    PYTHONPATH=src python bench/step.py --peer FOLDER_WITH_NANOGPT [--rows 41] [--tiny]

Interleaved, medians. `--rows` measures ours once more, with so many rows of logits at a time.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hornbook.base.machine import keep_freed_memory, processor_name, share_the_cores
from hornbook.model import loss
from hornbook.model.config import classic
from hornbook.model.init import untrained

ROUNDS = 4


def model_of(peer: Path) -> Any:
    spec = importlib.util.spec_from_file_location("nanogpt_model", peer / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def matrix_product() -> float:
    """GFLOP/s."""
    matrix, seconds = torch.randn(2048, 2048), []
    for _ in range(5):
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    return 2 * 2048**3 / statistics.median(seconds) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, help="where nanoGPT's model.py lies; without it, ours alone")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that it runs")
    given = parser.parse_args()
    share_the_cores()
    keep_freed_memory()
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 64} if given.tiny else {"n_layer": 12, "n_head": 12, "n_embd": 768}
    ours = untrained(classic(vocab_size=50_257, context=1024, **sizes)).train()
    ids = torch.randint(50_257, (4, 257))
    batch, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    chosen = loss.rows_at_once

    def step(rows: int | None = None) -> None:
        loss.rows_at_once = chosen if rows is None else lambda *_, **__: rows
        (ours(batch, targets) / targets.numel()).backward()
        ours.zero_grad(set_to_none=True)

    steps: dict[str, Callable[[], None]] = {"ours": step}
    if given.rows:
        steps[f"ours, {given.rows} rows of logits"] = lambda: step(given.rows)
    if given.peer:
        module = model_of(given.peer)
        knobs = {"block_size": 1024, "vocab_size": 50_257, "dropout": 0.0, "bias": True}
        theirs = module.GPT(module.GPTConfig(**knobs, **sizes)).train()

        def their_step() -> None:
            theirs(batch, targets)[1].backward()
            theirs.zero_grad(set_to_none=True)

        steps["nanoGPT"] = their_step
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(ROUNDS):
        for name, take in steps.items():
            began = time.perf_counter()
            take()
            if number:
                times[name].append(time.perf_counter() - began)
    print(f"{processor_name()}, {torch.get_num_threads()} threads, matrix product {matrix_product():.0f} GFLOP/s")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:28} {median:6.2f} s  {targets.numel() / median:7.0f} tokens/s")


if __name__ == "__main__":
    main()

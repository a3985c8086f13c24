"""How fast a machine learns, measured on itself in seconds.

In: a machine; or a whole run's settings.  Out: floating-point operations a second in products of matrices; or seconds a
step.
"""

from __future__ import annotations

import statistics
import time

import torch

from hornbook.base.machine import Machine, share_the_cores
from hornbook.base.process import keep_freed_memory
from hornbook.base.world import World
from hornbook.shards.order import Batch
from hornbook.train.config import RunConfig
from hornbook.train.learner import RECORDED_ON, Learner
from hornbook.train.recorded import STEPS_BEFORE
from hornbook.train.sizing import first_micro_batch

WIDTH = {"cpu": 1024, "mps": 2048, "cuda": 8192}
PRODUCTS = 20
STEPS, ENOUGH_SECONDS = 3, 4.0


def flops(machine: Machine) -> float:
    """Of a product of two large matrices, in the numbers that a run would compute in: of several the fastest, for what
    else the machine is doing now says nothing of the minutes that follow."""
    share_the_cores()
    width = WIDTH.get(machine.torch_device.type, WIDTH["mps"])
    matrix = torch.ones(width, width, device=machine.device, dtype=machine.torch_dtype)
    seconds = []
    for _ in range(PRODUCTS):
        began = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - began)
    return float(2 * width**3 / min(seconds))


def seconds_a_step(config: RunConfig, machine: Machine, compiled: bool = False) -> float:
    """Of a run with these settings, from a few steps on nothing in particular."""
    if machine.device == "cpu":
        keep_freed_memory()
    learner = Learner(config, machine, World(), first_micro_batch(config, machine), compiled)
    learner.prepare()

    def take(first: int, count: int) -> Batch:
        ids = torch.randint(config.model.known_vocab_size, (count, config.window + 1), device=machine.device)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    # Until a step has its memory, or is recorded.
    unlike_others = STEPS_BEFORE + 1 if machine.torch_device.type in RECORDED_ON else 1
    seconds: list[float] = []
    while len(seconds) < unlike_others + STEPS and sum(seconds) < ENOUGH_SECONDS:
        began = time.perf_counter()
        float(learner.learn(take, len(seconds), 0.0)[0])  # waits for the device
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[unlike_others:] or seconds[-1:])

"""How fast a machine learns, measured on itself in seconds.

In: a machine; or a whole run's settings.  Out: floating-point operations a second in products of matrices; or seconds a
step, and whether something else was at work meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from hornbook.base.machine import Machine, choose_machine, share_the_cores, waits_for_a_core
from hornbook.base.process import keep_freed_memory
from hornbook.base.world import World
from hornbook.shards.order import Batch
from hornbook.train.config import RunConfig
from hornbook.train.cuda_graph import STEPS_BEFORE
from hornbook.train.learner import RECORDED_ON, Learner
from hornbook.train.sizing import first_micro_batch, refuse_without_room

WIDTH = {"cpu": 1024, "mps": 2048, "cuda": 8192}
PRODUCTS = 20
STEPS, ENOUGH_SECONDS = 3, 4.0
# So much less time a step must take on half of the threads for them to be left out.
FEWER_PAYS = 0.95
# A step that takes longer has work for all of them.
LONGEST_TO_TRY_SECONDS = 2.0
# Of a free machine, waits for a core are up to 8 % of the time; of one with a busy program for each core, half of it.
BUSY = 0.2


class Timed(NamedTuple):
    """Seconds, and how many of them were spent in waiting for a core that something else had."""

    seconds: float
    waited: float

    @property
    def share_waited(self) -> float:
        return self.waited / self.seconds


def flops(machine: Machine) -> float:
    """Of a product of two large matrices, in the numbers that a run would compute in: of several the fastest, or what
    most took without their waits, for what else the machine is doing now says nothing of the minutes that follow."""
    share_the_cores()
    width = WIDTH.get(machine.torch_device.type, WIDTH["mps"])
    matrix = torch.ones(width, width, device=machine.device, dtype=machine.torch_dtype)
    products = [_timed(lambda: float((matrix @ matrix)[0, 0])) for _ in range(PRODUCTS)]  # waits for the device
    quickest = min(product.seconds for product in products)
    undisturbed = statistics.median(product.seconds - product.waited for product in products)
    return float(2 * width**3 / min(quickest, undisturbed))


def seconds_a_step(config: RunConfig, machine: Machine, compiled: bool = False) -> Timed:
    """Of a run with these settings, from a few steps on nothing in particular; where something else is at work, of the
    step that it disturbed least."""
    refuse_without_room(config, machine, World(), slices=None)
    if machine.device == "cpu":
        keep_freed_memory()
    learner = Learner(config, machine, World(), first_micro_batch(config, machine), compiled)
    learner.prepare()

    def take(first: int, count: int) -> Batch:
        ids = torch.randint(config.model.known_vocab_size, (count, config.window + 1), device=machine.device)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    # Until a step has its memory, or is recorded.
    unlike_others = STEPS_BEFORE + 1 if machine.torch_device.type in RECORDED_ON else 1
    steps: list[Timed] = []
    while len(steps) < unlike_others + STEPS and sum(step.seconds for step in steps) < ENOUGH_SECONDS:
        steps.append(_timed(lambda: float(learner.learn(take, len(steps), 0.0)[0])))  # waits for the device
    usual = steps[unlike_others:] or steps[-1:]
    seconds = [step.seconds for step in usual]
    share = sum(step.waited for step in usual) / sum(seconds)
    each = min(seconds) if share > BUSY else statistics.median(seconds)
    return Timed(each, share * each)


def threads_that_pay(config: RunConfig, machine: Machine) -> int:
    """On how many threads a step of these settings is quickest: all, or where it is too small for them and they wait
    for one another more than they compute, a half of them, or a half of that. All, where something else is at work."""
    best, step = machine.threads, seconds_a_step(config, machine)
    while best > 1 and step.share_waited <= BUSY and step.seconds < LONGEST_TO_TRY_SECONDS:
        fewer = seconds_a_step(config, choose_machine(machine.device, machine.dtype, best // 2))
        if fewer.seconds > FEWER_PAYS * step.seconds:
            break
        best, step = best // 2, fewer
    torch.set_num_threads(machine.threads)
    return best


def _timed(work: Callable[[], object]) -> Timed:
    before, began = waits_for_a_core(), time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    # All threads wait for the one that waits longest.
    waited = max((now - before.get(thread, 0.0) for thread, now in waits_for_a_core().items()), default=0.0)
    return Timed(seconds, min(waited, seconds))

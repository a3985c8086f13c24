"""How fast a machine is, is told as if nothing else were at work on it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from itertools import count

import pytest
import torch

from hornbook.base.machine import choose_machine
from hornbook.recipes.dial import LADDER, a_step_of
from hornbook.train import probe
from hornbook.train.probe import Timed

SPINS = "import os; os.sched_setaffinity(0, {%d}); print(flush=True)\nwhile True: pass"
WAITS = """
import os
os.sched_setaffinity(0, {%d})
from hornbook.base.machine import waits_for_a_core
while sum(waits_for_a_core().values()) < 0.05: pass
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="waits are not counted here")
def test_whoever_shares_a_core_waits_for_it() -> None:
    core = min(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", SPINS % core], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            subprocess.run([sys.executable, "-c", WAITS % core], check=True, timeout=60)
        finally:
            other.kill()


@pytest.mark.parametrize("waited", [0.0, 0.015])
def test_what_a_product_waits_does_not_make_the_machine_slower(waited: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes 5 ms, and the waits of the thread that waits longest; another waits a little."""
    machine, clock, waits = choose_machine("cpu"), count(), count()
    monkeypatch.setattr(probe.time, "perf_counter", lambda: next(clock) * (0.005 + waited))
    monkeypatch.setattr(probe, "waits_for_a_core", lambda: {"1": (n := next(waits)) * waited, "2": n * waited / 9})
    assert probe.flops(machine) == pytest.approx(2 * probe.WIDTH["cpu"] ** 3 / 0.005)


@pytest.mark.parametrize(
    ("seconds", "waited", "best"),
    [
        ({16: 0.4, 8: 0.3, 4: 0.2, 2: 0.25}, 0.0, 4),
        ({16: 0.4, 8: 0.395}, 0.0, 16),
        ({16: 0.4, 8: 0.3, 4: 0.2, 2: 0.1, 1: 0.05}, 0.0, 1),
        ({16: 0.4}, 0.2, 16),
        ({16: 4.0}, 0.0, 16),
    ],
    ids=["some", "hardly", "one", "busy", "large"],
)
def test_a_step_is_taken_on_as_many_threads_as_make_it_quickest(
    seconds: dict[int, float], waited: float, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = dataclasses.replace(choose_machine("cpu"), threads=16)
    with contextlib.ExitStack() as after:
        after.callback(torch.set_num_threads, torch.get_num_threads())
        monkeypatch.setattr(probe, "choose_machine", lambda *_: dataclasses.replace(machine, threads=_[2]))
        monkeypatch.setattr(probe, "seconds_a_step", lambda _, on: Timed(seconds[on.threads], waited))
        assert probe.threads_that_pay(a_step_of(LADDER[0], 100), machine) == best

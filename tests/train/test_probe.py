"""How fast a machine is, is told as if nothing else were at work on it."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count

import pytest

from hornbook.base.machine import choose_machine
from hornbook.train import probe

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

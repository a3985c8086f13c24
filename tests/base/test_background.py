from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from hornbook.base.background import Background

# A program that is ended while a thread of it is at work, and what it has to do at its end.
PROGRAM = """
import atexit, threading, time
from hornbook.base.background import Background, left_at_once

begun = threading.Event()

def work():
    begun.set()
    time.sleep({seconds})
    print("work done", flush=True)

@left_at_once
def main(words=None):
    with Background() as background:
        background.submit(work)
        begun.wait()
        raise SystemExit(143)

atexit.register(print, "at the end")
main({words})
"""


def test_work_is_done_in_order_and_tells_what_came_of_it() -> None:
    done: list[int] = []
    with Background() as background:
        futures = [background.submit(lambda number: done.append(number) or number, each) for each in range(5)]  # type: ignore[func-returns-value]
        failed = background.submit(lambda: 1 // 0)
    assert done == [future.result() for future in futures] == list(range(5))
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_leaving_by_an_error_cancels_all_that_is_not_done_and_waits_for_none_of_it() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), list[str]()

    def work() -> None:
        begun.set()
        go_on.wait(50)
        done.append("work")

    background = Background()
    with contextlib.suppress(KeyboardInterrupt), background:
        running, waiting = background.submit(work), background.submit(done.append, "more")
        begun.wait(50)
        raise KeyboardInterrupt
    assert background.left
    assert not done
    for future in (running, waiting):
        with pytest.raises(CancelledError):
            future.result(0)
    go_on.set()
    background._thread.join()
    assert done == ["work"]


@pytest.mark.parametrize(
    ("words", "seconds", "said"), [("", 90, ["at the end"]), ("[]", 0.3, ["at the end", "work done"])]
)
def test_a_command_does_not_wait_for_what_it_left_and_another_program_does(
    words: str, seconds: float, said: list[str]
) -> None:
    script = PROGRAM.format(words=words, seconds=seconds)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()) == (143, said)

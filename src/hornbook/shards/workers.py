"""Who does the tasks of a large work.

In: what `--workers` says.  Out: processes of this machine, or Ray. A process that dies takes no more with it than its
task, which another one does over.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from hornbook.base.errors import MachineError, UserError
from hornbook.base.process import keep_freed_memory
from hornbook.shards.over_ray import OverRay
from hornbook.shards.tasks import MOST_DEATHS, ONE_THREAD, Task, Workers, trouble_of

WAYS = "a number of processes, such as 8; ray, for Ray on this machine; or a cluster's address, ray://HOST:10001"


def workers_from(text: str) -> Workers:
    """What `--workers` says."""
    if text.isdecimal() and 0 < int(text) <= 4096:
        return Processes(int(text))
    if text == "ray" or text.startswith(("ray://", "ray:")):
        return OverRay(text)
    raise UserError(f"--workers {text}: should be {WAYS}")


class Processes(contextlib.AbstractContextManager["Processes"]):
    """So many of this machine. They end when this one does, however that ends."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._at_work: dict[Connection, _Process] = {}

    def __exit__(self, *error: object) -> None:
        for process in self._at_work.values():
            process.end()
        self._at_work.clear()

    def do(self, tasks: Sequence[Task]) -> Iterator[Any]:
        waiting, deaths = deque(tasks), dict.fromkeys((task.name for task in tasks), 0)
        idle = list(self._at_work.values())
        busy: dict[Connection, tuple[_Process, Task]] = {}
        while waiting or busy:
            while waiting and len(busy) < self.number:
                process = idle.pop() if idle else self._started()
                task = waiting.popleft()
                process.give(task)
                busy[process.connection] = process, task
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                process, task = busy.pop(connection)
                try:
                    trouble = connection.recv()
                except (EOFError, OSError):
                    deaths[task.name] += 1
                    how = self._at_work.pop(connection).end()
                    if deaths[task.name] == MOST_DEATHS:
                        raise MachineError(
                            f"{MOST_DEATHS} workers died of the same part ({how}); is there memory enough for "
                            f"{self.number} of them?"
                        ) from None
                    waiting.appendleft(task)
                    continue
                if trouble is not None:
                    raise trouble
                idle.append(process)
                yield task.name

    def _started(self) -> _Process:
        process = _Process()
        self._at_work[process.connection] = process
        return process


class _Process:
    def __init__(self) -> None:
        self.connection, there = Pipe()
        code = f"from hornbook.shards.workers import serve; serve({there.fileno()})"
        paths = os.pathsep.join(each for each in sys.path if each)
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ | ONE_THREAD | {"PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what a reader has to say, it has said where the text was measured
                pass_fds=[there.fileno()],
            )

    def give(self, task: Task) -> None:
        with contextlib.suppress(OSError):  # one that is dead is found so where it is waited for
            self.connection.send(task)

    def end(self) -> str:
        """How it did."""
        self._process.kill()
        code = self._process.wait()
        self.connection.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def serve(handle: int) -> None:
    """What such a process does: tasks that come through a pipe. Where that is closed, nobody waits for it any more."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the one that is waited for ends the others
    keep_freed_memory(one_heap=True)
    connection = Connection(handle)
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                tasks.put(connection.recv())
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        connection.send(trouble_of(tasks.get()))

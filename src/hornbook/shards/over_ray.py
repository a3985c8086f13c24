"""The parts of a work are done by Ray.

In: a cluster's address, and tasks.  Out: the names of those that are done. Every machine of it must see the text and
the folder of the shards under the same names, and have this package. A task tells nothing but whether it went well;
what it makes lies in the folder.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Self

from hornbook.base.errors import MachineError, UserError
from hornbook.base.process import keep_freed_memory
from hornbook.shards.tasks import MOST_DEATHS, ONE_THREAD, Task, trouble_of

SECONDS_TO_REACH = 20
IN_FLIGHT = 2  # tasks for each processor, so that none waits for the next


class OverRay:
    """By `ray`, a cluster of this machine alone is started; `ray://HOST:PORT` is one that is there, as its client
    server is called; `ray:ADDRESS` one as its machines call it, `ray:auto` the one that this machine is in."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._address = "local" if text == "ray" else text if text.startswith("ray://") else text.removeprefix("ray:")
        self.number = 1

    def __enter__(self) -> Self:
        try:
            import ray
        except ImportError:
            raise UserError(f"--workers {self._text}: needs Ray: pip install 'hornbook[ray]'") from None
        self._ray = ray
        host, _, port = self._address.removeprefix("ray://").rpartition(":")
        try:
            if port.isdecimal():  # Ray would try for minutes
                socket.create_connection((host, int(port)), SECONDS_TO_REACH).close()
            # Without an address Ray would look for a cluster, and wait for one that is gone.
            ray.init(
                address=self._address,
                runtime_env={"env_vars": ONE_THREAD},
                log_to_driver=False,
                logging_level="ERROR",
                **({"include_dashboard": False} if self._address == "local" else {}),
            )
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            first = str(error).partition("\n")[0]
            raise MachineError(f"--workers {self._text}: no such cluster can be reached ({first})") from None
        self.number = self._processors()
        return self

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    def do(self, tasks: Sequence[Task]) -> Iterator[Any]:
        ray = self._ray
        work = ray.remote(num_cpus=1, max_retries=MOST_DEATHS - 1)(_done)
        waiting = deque(tasks)
        at_work: dict[Any, Task] = {}
        while waiting or at_work:
            while waiting and len(at_work) < IN_FLIGHT * self.number:
                task = waiting.popleft()
                at_work[work.remote(task)] = task
            done, _ = ray.wait(list(at_work), num_returns=1)
            self.number = self._processors()  # machines come and go
            for each in done:
                task = at_work.pop(each)
                try:
                    trouble = ray.get(each)
                except ray.exceptions.RayError as error:
                    why = f"{type(error).__name__}: {error}".partition("\n")[0]
                    raise MachineError(f"--workers {self._text}: a part could not be done ({why})") from None
                if trouble is not None:
                    raise trouble
                yield task.name

    def _processors(self) -> int:
        return max(int(self._ray.cluster_resources().get("CPU", 1)), 1)


def _done(task: Task) -> Exception | None:
    keep_freed_memory(one_heap=True)
    return trouble_of(task)

"""Work that is cut into tasks.

In: tasks, which may be done again at any time, and by several at once.  Out: the names of those that are done, as they
are. `Here` does them one after another; shards/workers.py by processes, shards/over_ray.py by other machines.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

from hornbook.base.errors import HornbookError

MOST_DEATHS = 4  # of workers that are at one task, the last of which ends the work
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Task(NamedTuple):
    name: Any
    act: Callable[..., None]
    arguments: tuple[Any, ...]

    def do(self) -> None:
        self.act(*self.arguments)


class Workers(Protocol):
    number: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def do(self, tasks: Sequence[Task]) -> Iterator[Any]:
        """The name of each, when it is done."""
        ...


class Here:
    """This process."""

    number = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def do(self, tasks: Sequence[Task]) -> Iterator[Any]:
        for task in tasks:
            task.do()
            yield task.name


def trouble_of(task: Task) -> Exception | None:
    """What goes wrong with a task, fit to be sent elsewhere."""
    try:
        task.do()
    except HornbookError as error:
        return error
    except Exception as error:
        told = RuntimeError(f"{type(error).__name__}: {error}")
        told.add_note("".join(traceback.format_exception(error)))
        return told
    return None

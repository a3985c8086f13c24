"""Work beside the thread that waits for it, which can be left at once.

In: functions, one after another.  Out: what each returns, as a `Future`. A library's Rust or C hears no Ctrl-C, and
`concurrent.futures` waits for what runs, when its `with` ends and again when the process does. Here what runs is left
behind, and what it returns is thrown away. A thread that comes back from Rust while Python ends aborts the process, so
a command ends without that (`left_at_once`), and any other program waits for such threads.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from types import FrameType
from typing import Any, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_left: list[threading.Thread] = []


class Background:
    """One thread. Leaving by an error, such as Ctrl-C, cancels all that is not done."""

    def __init__(self) -> None:
        self.left = False
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._at_work: Future[Any] | None = None
        self._done = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def submit(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        with self._changed:
            self._waiting.append((future, lambda: act(*args, **kwargs)))
            self._changed.notify()
        return future

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._leave()
            return
        try:
            with self._changed:
                self._done = True
                self._changed.notify()
            self._thread.join()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        with self._changed:
            self._done = self.left = True
            dropped = [future for future, _ in self._waiting]
            self._waiting.clear()
            if self._at_work is not None:
                dropped.append(self._at_work)
            self._changed.notify()
        for future in dropped:
            with contextlib.suppress(InvalidStateError):  # it has just been done
                future.set_exception(CancelledError())
        _left.append(self._thread)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._at_work = None
                self._changed.wait_for(lambda: self._waiting or self._done)
                if not self._waiting:
                    return
                future, act = self._waiting.popleft()
                self._at_work = future
            self._settle(future, act)
            del future, act  # what they hold may be large

    @staticmethod
    def _settle(future: Future[T], act: Callable[[], T]) -> None:
        try:
            result = act()
        except BaseException as error:  # a panic in a library's Rust is no Exception
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)
        else:
            with contextlib.suppress(InvalidStateError):
                future.set_result(result)


@atexit.register
def _wait_for_left() -> None:
    for thread in _left:
        thread.join()


def left_at_once(command: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """A program's main function, which takes the words of the command line itself when it is given none. The program
    ends when that does, whatever has been left behind."""

    @functools.wraps(command)
    def main(words: Sequence[str] | None = None) -> int:
        try:
            code = command(words)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
            if words is not None or not any(thread.is_alive() for thread in _left):
                raise
        if words is None and any(thread.is_alive() for thread in _left):
            _left.clear()
            atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)
        return code

    return main


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, end what is at work as Ctrl-C does: nothing is left behind.
    Whoever has chosen otherwise, such as `nohup`, is not overruled."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)])]  # no SIGHUP on Windows
    here = threading.current_thread() is threading.main_thread()
    ours = [number for number in numbers if here and signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)

"""How this process goes about its memory.

In: nothing, or work to be done.  Out: the same process, quicker at that work; and afterwards as it was found.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


def keep_freed_memory(one_heap: bool = False) -> None:
    """Let the C library keep what is freed for the next tensor or batch, rather than hand it back and fault it in anew,
    page by page; from one heap where few threads hand their memory on to one another, since a thread's own goes back
    whenever it is empty. With glibc alone; elsewhere it does nothing."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-4, 0)  # M_MMAP_MAX: no memory map for a large block
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nothing given back at the heap's end
        if one_heap:
            library.mallopt(-8, 1)  # M_ARENA_MAX


@contextlib.contextmanager
def process_left_as_found() -> Iterator[None]:
    """For who trains from a notebook, and goes on in it: torch's threads, and the C library's ways with what is
    freed."""
    import ctypes

    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL("libc.so.6")
            library.mallopt(-4, 65536)  # as glibc begins
            library.mallopt(-1, 128 * 1024)
            library.malloc_trim(0)


@contextlib.contextmanager
def garbage_sought_among_new_objects() -> Iterator[None]:
    """Work that makes many objects, and few of them garbage, lets Python search through all that are alive again and
    again: a tenth of a preparation's time. Those that are there already are left out of it meanwhile."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

"""Share work among threads, and keep BLAS to one thread meanwhile.

NumPy releases the interpreter's lock in matmul and exp, so threads that each take whole tiles use every core. A BLAS
that splits each tile again would only make them wait, and its results may change with its number of threads.

threadpoolctl, the usual tool, is no help: since 3.8 it lets one thread at a time change the limit and ignores all
others, so callers that overlap would leave the limit behind.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

# Functions that read and set the number of threads: of OpenBLAS in NumPy's wheels and in distributions, and of MKL.
_NAMES = [
    *(
        (f"{p}openblas_get_num_threads{s}", f"{p}openblas_set_num_threads{s}")
        for p in ("scipy_", "")
        for s in ("64_", "")
    ),
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
]

# Bytes that OpenBLAS takes for each thread that multiplies at the same time, rounded up.
_BUFFER = 64 << 20

# Threads that have been found to have room for their buffers.
_with_room = 0

# Overlapping callers share the limit: the first sets it, the last removes it.
_lock = threading.Lock()
_inside = 0
_before = 1


def share_out(count: int, threads: int, worker: Callable[[Iterator[int]], None]) -> None:
    """Let up to `threads` threads call worker(tasks). Together their tasks are range(count), each once.

    The calling thread is one of them. An exception in any thread stops all of them after their current task and is
    raised. So is MemoryError if BLAS would have no memory for their buffers.
    """
    waiting = deque(range(count))

    def tasks() -> Iterator[int]:
        while True:
            try:
                task = waiting.popleft()
            except IndexError:
                return
            yield task

    def run() -> None:
        try:
            worker(tasks())
        except BaseException:
            waiting.clear()
            raise

    helpers = min(threads, count) - 1
    _check_room(helpers + 1)
    if helpers < 1:
        return run()
    with ThreadPoolExecutor(helpers, "mdmf-mmd") as pool:
        futures = [pool.submit(run) for _ in range(helpers)]
        run()
        for future in futures:
            future.result()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep NumPy's BLAS to one thread in the whole process, and restore its former number at the end.

    Any number of threads may be inside at once. A BLAS that is neither OpenBLAS nor MKL is left alone.
    Raises MemoryError if BLAS would have no memory for its buffer.
    """
    global _inside, _before
    _check_room(1)
    functions = _functions()
    if functions is None:
        yield
        return
    get, put = functions
    with _lock:
        if _inside == 0:
            _before = get()
            put(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                put(_before)


def _forget() -> None:
    """Take the limit off in a forked process, which has none of the threads that set it."""
    global _lock, _inside
    _lock = threading.Lock()
    functions = _functions()
    if _inside and functions is not None:
        functions[1](_before)
    _inside = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _check_room(threads: int) -> None:
    """Raise MemoryError if BLAS cannot have the buffers of so many threads: OpenBLAS would end the process, with 1."""
    global _with_room
    if threads > _with_room:
        np.empty((threads - _with_room) * _BUFFER, np.uint8)  # never touched, so that it takes only addresses
        _with_room = threads


@cache
def _functions() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Return the functions that read and set the number of threads of NumPy's own BLAS, or None if it has neither."""
    for library in _libraries():
        for get, put in _NAMES:
            if hasattr(library, get) and hasattr(library, put):
                return getattr(library, get), getattr(library, put)
    return None


def _libraries() -> Iterator[ctypes.CDLL]:
    for name in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):
        if path := getattr(sys.modules.get(name), "__file__", None):
            # Except on Windows, this also finds symbols of the libraries that it is linked to.
            yield ctypes.CDLL(path)
    for folder in ("numpy.libs", "numpy/.libs"):
        for file in sorted((Path(np.__file__).parents[1] / folder).glob("*openblas*.dll")):
            yield ctypes.CDLL(str(file))

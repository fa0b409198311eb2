"""Sharing out work among threads, in one process.

NumPy releases the interpreter's lock in matmul and exp, so threads that each take whole tiles use every core; a BLAS
that shares out each tile again would only make them wait, and its results may change with its number of threads: see
blas.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor


def share_out(count: int, threads: int, worker: Callable[[Iterator[int]], None]) -> None:
    """Have up to `threads` threads call worker(tasks) each; together their tasks are range(count), each once.

    The calling thread is one of them.  An exception in any ends them all after the task at hand, and is raised.
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
    if helpers < 1:
        return run()
    with ThreadPoolExecutor(helpers, "mdmf-mmd") as pool:
        futures = [pool.submit(run) for _ in range(helpers)]
        run()
        for future in futures:
            future.result()

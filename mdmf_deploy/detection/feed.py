"""Sources -> prepared sources: threads work ahead of whoever takes them, in order, but only so far ahead."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue

from mdmf_deploy.detection.prepare import Prepared, Source
from mdmf_deploy.errors import UsageError

GLANCE = 1.0  # seconds between two looks at whether a wait still makes sense
_PATIENCE = 1.0  # seconds that closing waits for an iterable that is itself waiting


def check_main_thread() -> None:
    """For threads that wait without end, as a program cannot exit before they do.

    Raises UsageError once the main thread has ended.
    """
    if not threading.main_thread().is_alive():
        raise UsageError("the main thread has ended before this stream; let it wait for whoever reads the stream")


class Feed:
    """Gives one Prepared for every source, in order.

    The sources are iterated in a thread of their own, so that one that comes late holds up none that came before it,
    and prepared in `workers` others. ahead: most sources that are taken before they are asked for.
    """

    def __init__(
        self, sources: Iterable[Source], prepare: Callable[[int, Source], Prepared], workers: int, ahead: int
    ) -> None:
        self._prepare = prepare
        self._room = threading.Semaphore(ahead)
        self._queue: SimpleQueue[Future[Prepared] | None] = SimpleQueue()
        self._head: Future[Prepared] | None = None
        self._closed = False
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="mdmf-decode")
        # A daemon: an iterable that waits for its next source for ever must not keep the process alive.
        self._thread = threading.Thread(target=self._iterate, args=(sources,), name="mdmf-sources", daemon=True)

    def start(self) -> None:
        """Begin to take sources."""
        self._thread.start()

    def peek(self, timeout: float | None = None) -> Prepared | None:
        """The next one; None after the last.

        Raises TimeoutError if it is not ready in time, UsageError if the main thread has ended, else a source's error.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        if self._head is None:
            self._head = self._next(deadline)
        if self._head is None:
            self._queue.put(None)  # for whoever asks again
            return None
        return self._head.result(None if timeout is None else max(0.0, deadline - time.monotonic()))

    def pop(self) -> None:
        """Let go of the one last seen, and so make room for another."""
        self._head = None
        self._room.release()

    def close(self) -> None:
        """Take no more sources, drop those that wait, finish those in work, end the threads; whoever peeks sees an end.

        Of an iterable that is waiting for its own next source the thread is left behind; it ends once that comes.
        """
        self._closed = True
        self._room.release()
        self._queue.put(None)
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def _next(self, deadline: float) -> Future[Prepared] | None:
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                return self._queue.get(timeout=min(left, GLANCE))
            except Empty:
                if left <= GLANCE:
                    raise TimeoutError from None
                check_main_thread()

    def _submitted(self, n: int, source: Source) -> Future[Prepared]:
        try:
            return self._pool.submit(self._prepare, n, source)
        except RuntimeError:
            if not self._closed:
                # Pools take no more once the interpreter is ending, just before the main thread counts as ended.
                threading.main_thread().join(GLANCE)
                check_main_thread()
            raise

    def _iterate(self, sources: Iterable[Source]) -> None:
        try:
            numbered = enumerate(sources)
            while True:
                self._room.acquire()
                if self._closed:
                    return
                pair = next(numbered, None)
                if pair is None or self._closed:
                    return
                self._queue.put(self._submitted(*pair))
        except BaseException as error:
            failed: Future[Prepared] = Future()
            failed.set_exception(error)
            self._queue.put(failed)
        finally:
            self._queue.put(None)

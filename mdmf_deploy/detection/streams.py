"""The streams of one detector: which threads are inside it, and how all streams end before it is closed."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from mdmf_deploy.detection.feed import Extraction
from mdmf_deploy.errors import UsageError
from mdmf_deploy.hardware.forks import Origin


class Stream:
    """The batches of one stream. Several threads may end it, and each waits until it has ended."""

    def __init__(self, batches: Generator[list[Extraction], None, None]) -> None:
        self._batches = batches
        self._origin = Origin("detector")
        # Of one thread it may be held twice: ending a stream may free another one's rows, and so end that.
        self._ending = threading.RLock()

    def next(self) -> list[Extraction] | None:
        """Return the next batch, or None after the last."""
        return next(self._batches, None)

    def close(self) -> None:
        """End the stream's threads. Does nothing in a forked process, which has none of them."""
        if self._origin.is_here:
            with self._ending:
                self._batches.close()


class Streams:
    """A detector's streams, and the threads that are inside it."""

    def __init__(self) -> None:
        self._origin = Origin("detector")
        self._lock = threading.Lock()
        self._streams: WeakSet[Stream] = WeakSet()
        self._inside: set[int] = set()
        self.closed = False

    def check(self) -> None:
        """Raise UsageError if the detector is closed, or in a forked process."""
        self._origin.check()
        if self.closed:
            raise UsageError("this detector is closed; open another one, or stay inside its `with` block")

    def add(self, batches: Generator[list[Extraction], None, None]) -> Stream:
        """Return a stream that ends when the detector is closed. Raises like `check`."""
        stream = Stream(batches)
        self.check()  # before the lock, which another thread may have held when this process was forked
        with self._lock:
            self.check()
            self._streams.add(stream)
        return stream

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Keep the detector open during the block. Raises like `check`."""
        thread = threading.get_ident()
        self.check()
        try:
            with self._lock:
                self.check()
                self._inside.add(thread)
            yield
        finally:
            self._inside.discard(thread)

    def close(self) -> bool:
        """End all streams, and return whether what they used may be freed: not in a forked process.

        Raises UsageError if another thread is inside. Then every stream goes on.
        """
        if not self._origin.is_here:
            return False
        with self._lock:
            if self._inside - {threading.get_ident()}:
                raise UsageError(
                    "another thread is waiting for a row of this detector; let it end before you close the detector"
                )
            self.closed = True
            streams = list(self._streams)
        for stream in streams:
            stream.close()
        return True

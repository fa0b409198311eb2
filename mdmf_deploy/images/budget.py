"""Memory shared by the threads that decode: what needs much waits until there is room for it.

Images that need little are not counted. So with eight threads and a limit of 1 GiB, decoding takes less than 1.5 GiB.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from mdmf_deploy.images.isolation.owners import Ended, owner

SMALL = 64 * 2**20
"""Bytes. An image that needs no more than this never waits."""


class Budget:
    """Bytes that threads hold while they decode large images. Requests are served in the order they come."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all requests. For a forked process, which has none of the threads that made them."""
        self._changed = threading.Condition()
        self._held = 0
        self._queue: deque[object] = deque()

    @contextmanager
    def held(self, needed: int, most: int) -> Iterator[None]:
        """Hold `needed` bytes, at most `most`, once all large images in work hold no more than `most` together.

        Raises Ended if the thread's owner ends while it waits.
        """
        needed = min(needed, most)
        if needed <= SMALL:
            yield
            return
        self._wait(needed, most)
        try:
            yield
        finally:
            with self._changed:
                self._held -= needed
                self._changed.notify_all()

    def _wait(self, needed: int, most: int) -> None:
        turn, mine = object(), owner()
        with mine.stopping(self._wake), self._changed:
            self._queue.append(turn)
            try:
                self._changed.wait_for(
                    lambda: mine.ended or (self._queue[0] is turn and self._held + needed <= most),
                )
                if mine.ended:
                    raise Ended
                self._held += needed
            finally:
                # Also after an interrupt, or nobody behind would ever have a turn.
                self._queue.remove(turn)
                self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


DECODING = Budget()
"""The memory of all threads of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DECODING.reset)

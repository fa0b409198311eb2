"""Memory shared by the threads that decode: what needs much waits until there is room for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

SMALL = 64 * 2**20
"""Bytes. An image that needs no more than this never waits."""


class Budget:
    """Bytes that threads hold while they decode large images. Requests are served in the order they come."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held = 0
        self._queue: list[object] = []

    @contextmanager
    def held(self, needed: int, most: int) -> Iterator[None]:
        """Hold `needed` bytes, at most `most`, once all large images in work hold no more than `most` together."""
        needed = min(needed, most)
        if needed <= SMALL:
            yield
            return
        turn = object()
        with self._changed:
            self._queue.append(turn)
            self._changed.wait_for(lambda: self._queue[0] is turn and self._held + needed <= most)
            self._queue.remove(turn)
            self._held += needed
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held -= needed
                self._changed.notify_all()


DECODING = Budget()
"""The memory of all threads of this process."""

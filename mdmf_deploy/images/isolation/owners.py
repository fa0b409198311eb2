"""Owners of isolated requests: whoever ends early can end its requests at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_thread = threading.local()


class Ended(Exception):
    """The owner of this request has ended, so nobody waits for the result."""


class Owner:
    """Requests made by threads that adopted this owner."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all requests. For a forked process, which has none of the threads that made them."""
        self._lock = threading.Lock()
        self._ended = False
        self._stops: dict[object, Callable[[], None]] = {}

    @property
    def ended(self) -> bool:
        return self._ended

    def adopt(self) -> None:
        """Make every later request of the calling thread belong to this owner."""
        _thread.owner = self

    def end(self) -> None:
        """Kill the children that work for this owner. Their requests, and any later ones, raise Ended."""
        with self._lock:  # while they stop, because a child may serve another owner afterwards
            self._ended = True
            for stop in self._stops.values():
                stop()

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Call `stop`, from another thread, if the owner ends during the block. Raises Ended if it has ended before."""
        key = object()
        with self._lock:
            if self._ended:
                raise Ended
            self._stops[key] = stop
        try:
            yield
        finally:
            with self._lock:
                del self._stops[key]


_NOBODY = Owner()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_NOBODY.reset)


def owner() -> Owner:
    """Return the owner that the calling thread has adopted, or one that never ends."""
    found: Owner = getattr(_thread, "owner", _NOBODY)
    return found

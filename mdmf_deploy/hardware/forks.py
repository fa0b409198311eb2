"""Forks: the child has none of its parent's threads, so it must not use, wait for or free what they serve."""

from __future__ import annotations

import ctypes
import os
from weakref import WeakSet

from mdmf_deploy.errors import UsageError


class Origin:
    """The process in which something was made.  what: names it in the error, such as "detector"."""

    def __init__(self, what: str) -> None:
        self._what, self._process = what, os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether that is this process, and not one that forked this one."""
        return os.getpid() == self._process

    def check(self) -> None:
        """Raise UsageError in a process that was forked since."""
        if not self.is_here:
            raise UsageError(f"this {self._what} was made in another process; open one after the fork, or use spawn")


_kept: WeakSet[object] = WeakSet()


def keep_in_forks(native: object) -> None:
    """Never free this object in a process that is forked while it exists.

    The destructors of runtimes join their threads. In a child they would wait for ever, also at its exit.
    """
    _kept.add(native)


def _keep() -> None:
    for native in _kept:
        # A reference that nobody ever gives back. Those in globals go when the interpreter ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(native))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)

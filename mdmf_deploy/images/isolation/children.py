"""Child processes that run tasks: started on demand, at most one per core, and reused."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress

from mdmf_deploy.errors import ImageError
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.images.isolation.owners import Ended, Owner
from mdmf_deploy.images.isolation.wire import Wire

if sys.platform == "linux":
    import fcntl

MOST = 8
"""Children at once."""

_PRINTED = 2**16  # bytes of messages that are read
# Isolated from the user's environment and from the working folder. The path is the parent's.
_CODE = "import sys; sys.path[:] = sys.argv[1:]; from mdmf_deploy.images.isolation.child import main; main()"

_ENVIRONMENT = {
    # Numeric libraries would start threads and reserve memory for each core.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # The GNU C library gives large blocks back to the system at once, so that an idle child holds little.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**22),
}


class Child:
    """A process that serves one request after another. One thread talks to it at a time; any may kill it.

    used: whether it has served a request.
    """

    def __init__(self) -> None:
        self._printed = _scratch_file()
        # Windows would open a window for it.
        flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CODE, *map(os.path.abspath, sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if self._printed is None else self._printed,
                bufsize=0,
                # In a session of its own, a terminal's Ctrl-C does not reach it.
                start_new_session=True,
                env={**os.environ, **_ENVIRONMENT},
                creationflags=flags,
            )
        except OSError as error:
            self._close_file()
            raise ImageError("unreadable", f"no process can be started to decode it: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for pipe in (self._process.stdin, self._process.stdout):
            _widen(pipe.fileno())
        self.used = False
        self.wire = Wire(self._process.stdout.fileno(), self._process.stdin.fileno())

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process. Whoever reads from it meets the end of the pipe. Safe to call from any thread."""
        self._process.kill()

    def exit_code(self) -> int:
        """Wait for the end of a process that has closed its pipe, and return its exit code or minus its signal."""
        try:
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def end(self) -> None:
        """Kill the process and close its pipes."""
        self._process.kill()
        self._process.wait()
        self.close()

    def close(self) -> None:
        """Close this process's ends of the pipes."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._close_file()

    def disown(self) -> None:
        """Forget the process, which belongs to the process that forked this one."""
        self.close()
        self._process.returncode = 0

    def printed(self) -> str:
        """Return the text that the process has printed since the last call."""
        if self._printed is None:
            return ""
        os.lseek(self._printed, 0, os.SEEK_SET)
        text = os.read(self._printed, _PRINTED)
        if text:
            # The process writes at the offset that it shares with this descriptor.
            os.ftruncate(self._printed, 0)
            os.lseek(self._printed, 0, os.SEEK_SET)
        return text.decode("utf-8", "replace")

    def _close_file(self) -> None:
        if self._printed is not None:
            os.close(self._printed)
            self._printed = None


class Children:
    """All children of this process. Safe to use from many threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._starting = 0

    def take(self, owner: Owner) -> Child:
        """Return a child that nobody else uses. Waits until one is free. Raises Ended if the owner ends meanwhile."""
        with owner.stopping(self._wake), self._changed:
            self._changed.wait_for(lambda: owner.ended or self._idle or len(self._busy) + self._starting < self._most)
            if owner.ended:
                self._changed.notify()
                raise Ended
            while self._idle:
                child = self._idle.pop()
                if child.alive():
                    self._busy.add(child)
                    return child
                child.end()
            self._starting += 1
        try:
            child = Child()
            with self._changed:
                self._busy.add(child)
            return child
        finally:
            with self._changed:
                self._starting -= 1
                self._changed.notify()

    def renewed(self, child: Child) -> Child:
        """End a child and return a new one in its place."""
        child.end()
        new = Child()
        with self._changed:
            self._busy.discard(child)
            self._busy.add(new)
        return new

    def give_back(self, child: Child, usable: bool) -> None:
        """Let another request use the child, or end it."""
        child.used = True
        if not usable:
            child.end()
        with self._changed:
            self._busy.discard(child)
            if usable:
                self._idle.append(child)
            self._changed.notify()

    def end(self) -> None:
        """End all children."""
        with self._changed:
            idle, self._idle = self._idle, []
            for child in self._busy:
                child.kill()  # its thread closes the pipes
        for child in idle:
            child.end()

    def disown(self) -> None:
        """Close the pipes of all children in a forked process, so that only their parent holds them."""
        for child in (*self._idle, *self._busy):
            child.disown()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


_children: Children | None = None
_lock = threading.Lock()


def children() -> Children:
    """Return the children of this process."""
    global _children
    with _lock:
        if _children is None:
            _children = Children(min(MOST, cores()))
            atexit.register(_children.end)
        return _children


def _forget() -> None:
    """Give a forked process children of its own: it must not talk on the pipes of its parent's."""
    global _children, _lock
    _lock = threading.Lock()
    if _children is not None:
        atexit.unregister(_children.end)
        _children.disown()
        _children = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _widen(pipe: int) -> None:
    """Let a pipe hold a mebibyte, where the system can: fewer turns between the processes."""
    if sys.platform == "linux":
        with suppress(OSError):  # the user's pipes hold too much already
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 2**20)


def _scratch_file() -> int | None:
    """Return a descriptor of a file that has no name, or None if the system has no room for one."""
    try:
        if hasattr(os, "memfd_create"):
            return os.memfd_create("mdmf-messages")
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    except OSError:
        return None

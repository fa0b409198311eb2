"""The child process: it takes requests from standard input, one after another, until the parent goes away."""

from __future__ import annotations

import importlib
import math
import os
import select
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from numpy.typing import NDArray

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.isolation.tasks import TASKS
from mdmf_deploy.images.isolation.wire import Done, Failure, Garbled, Kind, Request, Wire

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_FILE = 2**20  # bytes of the largest file that a task may write, its standard error included
_GROWTH = 32 * 2**20  # bytes that a child may keep after a request; beyond, it ends

_T = TypeVar("_T")


class Channel:
    """A task's way to talk to the parent."""

    def __init__(self, wire: Wire, parameters: bytes) -> None:
        self._wire, self._parameters = wire, parameters

    def parameters(self, type: type[_T]) -> _T:
        """Return the parameters that the parent gave."""
        return msgspec.msgpack.decode(self._parameters, type=type)

    def send(self, message: msgspec.Struct) -> None:
        """Send a struct, for Conversation.receive."""
        self._wire.send(Kind.message, msgspec.msgpack.encode(message))

    def send_array(self, array: NDArray[Any]) -> None:
        """Send the bytes of a C-contiguous array, for Conversation.array."""
        self._wire.send(Kind.array, array.data if array.nbytes else b"")

    def ask(self, message: msgspec.Struct, type: type[_T]) -> _T:
        """Send a struct and return the parent's answer."""
        self.send(message)
        return msgspec.msgpack.decode(_received(self._wire, Kind.message), type=type)


def main() -> None:
    """Serve requests. Standard output is kept for the protocol: whatever a library prints goes to standard error."""
    incoming, outgoing = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_FSIZE", _FILE)
    threading.Thread(target=_end_with_parent, args=(incoming,), daemon=True).start()
    wire = Wire(incoming, outgoing)
    try:
        while _serve(wire):
            pass
    except EOFError:
        pass
    # At once: no destructor of a codec gets to run, and nothing is left to write.
    os._exit(0)


def _serve(wire: Wire) -> bool:
    """Serve one request. Return whether the child can serve another."""
    request = msgspec.msgpack.decode(_received(wire, Kind.request), type=Request)
    module, name = TASKS[request.task]
    task = getattr(importlib.import_module(module), name)
    before = _held()
    _limit("RLIMIT_DATA", before + request.memory)
    _limit("RLIMIT_CPU", math.ceil(_cpu_seconds() + request.seconds))
    wire.send(Kind.ready)
    failure = _failure(task, wire, request)
    _limit("RLIMIT_DATA", None)
    _limit("RLIMIT_CPU", None)
    spent = _held() > before + _GROWTH or (failure is not None and failure[0] == "too_much_memory")
    if failure is None:
        wire.send(Kind.done, msgspec.msgpack.encode(Done(spent)))
    else:
        wire.send(Kind.failure, msgspec.msgpack.encode(Failure(*failure, spent)))
    return not spent


def _failure(task: Any, wire: Wire, request: Request) -> tuple[str, str] | None:
    """Run a task. Return the code and text of its failure, or None."""
    try:
        payload = _received(wire, Kind.payload, request.size)
        task(payload, Channel(wire, request.parameters))
    except EOFError:
        raise
    except ImageError as error:
        return error.code, str(error)
    except MemoryError:
        return "too_much_memory", ""
    except BaseException as error:
        traceback.print_exc()
        return "corrupt", f"{type(error).__name__}: {error}"
    return None


def _received(wire: Wire, kind: Kind, most: int | None = None) -> bytes:
    found, length = wire.next()
    if found is not kind:
        raise Garbled(f"{found}, expected {kind}")
    return wire.body(length) if most is None else wire.body(length, most)


def _limit(name: str, value: int | None) -> None:
    """Set a soft limit, or lift it. Systems that lack it go without."""
    if resource is None or not hasattr(resource, name):
        return
    number = getattr(resource, name)
    _, hard = resource.getrlimit(number)
    if value is None or (hard != resource.RLIM_INFINITY and value > hard):
        value = hard
    try:
        resource.setrlimit(number, (value, hard))
    except (ValueError, OSError):
        print(f"{name} cannot be set to {value}", file=sys.stderr)


def _held() -> int:
    """Return the bytes of private writable memory, which RLIMIT_DATA counts. 0 if the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _end_with_parent(incoming: int) -> None:
    """End as soon as the parent closes its end of the pipe, even in the middle of a request."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(incoming, 0)
        poll.poll()
        os._exit(0)

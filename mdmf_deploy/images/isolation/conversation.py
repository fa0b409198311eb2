"""The parent's side of a request: it sends the bytes, talks to the task, and turns every ending into one outcome."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.isolation.children import Child, children
from mdmf_deploy.images.isolation.owners import Ended, owner
from mdmf_deploy.images.isolation.wire import MESSAGE, Done, Failure, Garbled, Kind, Request
from mdmf_deploy.images.limits import Code
from mdmf_deploy.images.rgb import LOG

START_SECONDS = 60.0
"""Seconds that a child may take to start and to import a task."""

_TICK = 0.5  # seconds
_NO_SIGNAL = 2**16  # Windows has neither of the two that matter
_LINES, _LINE = 20, 200  # messages kept of a request, and characters kept of each
# How libraries say that they ran out of memory, if they do not end the process.
_NO_MEMORY = re.compile(r"out of memory|bad_alloc|no space for|(?:cannot|can't|failed to|unable to) allocate", re.I)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Allowance:
    """Bounds on one request.

    memory: bytes that the task may allocate, its copy of the payload included.
    seconds: of wall time, and of CPU time over all of the child's threads.
    """

    memory: int
    seconds: float


class Conversation:
    """A request in work.

    messages: lines that the codec's libraries have printed. Complete once the block has ended.
    """

    def __init__(self, child: Child, allowance: Allowance, label: str) -> None:
        self.child, self._allowance, self._label = child, allowance, label
        self.messages: tuple[str, ...] = ()
        self.begun = self.over = self.usable = self.slow = False

    def receive(self, type: type[_T]) -> _T:
        """Return the struct that the task sends next. Its values are the child's word: check them."""
        return msgspec.msgpack.decode(self._body(Kind.message), type=type)

    def array(self, shape: tuple[int, ...], dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """Return the array that the task sends next, which must have exactly as many bytes."""
        array = np.empty(shape, dtype)
        self.fill(array)
        return array

    def fill(self, array: NDArray[Any]) -> None:
        """Fill a C-contiguous array with the one that the task sends next, which must have exactly as many bytes."""
        length = self._expect(Kind.array)
        if length != array.nbytes:
            raise Garbled(f"{length} bytes, expected {array.nbytes}")
        if length:
            self.child.wire.fill(memoryview(array.data).cast("B"))

    def send(self, message: msgspec.Struct) -> None:
        """Send a struct that the task asks for."""
        self._send(Kind.message, msgspec.msgpack.encode(message))

    def begin(self, request: Request, renewed: Callable[[Child], Child]) -> None:
        """Wait until the child has imported the task. A child that has died since its last request is renewed."""
        try:
            self._begin(request)
        except EOFError:
            if not self.child.used or self.slow or owner().ended:
                raise
            self.child = renewed(self.child)
            self._begin(request)

    def kill(self) -> None:
        self.child.kill()

    def _begin(self, request: Request) -> None:
        if owner().ended:
            raise Ended
        if self.slow:
            raise EOFError
        self._send(Kind.request, msgspec.msgpack.encode(request))
        self._body(Kind.ready)
        self.begun = True

    def give(self, payload: bytes) -> None:
        self._send(Kind.payload, payload)

    def finish(self) -> None:
        """Wait for the end of the task."""
        done = msgspec.msgpack.decode(self._body(Kind.done), type=Done)
        self.over, self.usable = True, not done.spent

    def collect(self) -> None:
        """Take over what was printed."""
        lines = (" ".join(line.split()) for line in self.child.printed().splitlines())
        printable = ("".join(c if c.isprintable() else "?" for c in line)[:_LINE] for line in lines if line)
        self.messages = tuple(dict.fromkeys(printable))[:_LINES]
        for message in self.messages:
            LOG.debug("%s: %s", self._label, message)

    def failed(self, failure: Failure) -> ImageError:
        """Return the error for a failure that the task has reported."""
        self.over, self.usable = True, not failure.spent
        if failure.code == "too_much_memory":
            return self._too_much_memory()
        if failure.code not in get_args(Code):
            raise Garbled(f"the code {failure.code!r}")
        return ImageError(failure.code, " ".join(failure.text.split())[:500])

    def died(self) -> Exception:
        """Return the error for a child that has gone."""
        self.over = True
        code = self.child.exit_code()
        self.collect()
        if owner().ended:
            return Ended()
        if not self.begun:
            why = self.messages[-1] if self.messages else _ending(code)
            return ImageError("unreadable", f"{self._label}: the process that decodes it did not start ({why})")
        if self.slow or code == -getattr(signal, "SIGXCPU", _NO_SIGNAL):
            return ImageError(
                "too_slow",
                f"{self._label}: decoding it takes more than {self._allowance.seconds:g} s; "
                "raise --max-seconds to read it",
            )
        if code == -getattr(signal, "SIGKILL", _NO_SIGNAL) or any(map(_NO_MEMORY.search, self.messages)):
            return self._too_much_memory()
        return ImageError("corrupt", f"{self._label}: it is damaged (the decoder crashed: {_ending(code)})")

    def judged(self, error: ImageError) -> ImageError:
        """Return the error for an ImageError of the task, now that the messages are known. They become its notes."""
        if error.code in ("corrupt", "truncated") and self.messages:
            if any(map(_NO_MEMORY.search, self.messages)):
                error = self._too_much_memory()
            else:
                error = ImageError(error.code, f"{error}: {self.messages[0]}")
        for message in self.messages:
            error.add_note(message)
        return error

    def garbled(self, error: Exception) -> ImageError:
        self.over = True
        return ImageError("corrupt", f"{self._label}: it is damaged (the decoder answered nonsense: {error})")

    def _too_much_memory(self) -> ImageError:
        return ImageError(
            "too_much_memory",
            f"{self._label}: decoding it takes more than {self._allowance.memory >> 20} MiB; "
            "raise --max-memory to read it",
        )

    def _send(self, kind: Kind, body: bytes) -> None:
        try:
            self.child.wire.send(kind, body)
        except EOFError:
            # The child may have said why before it went. Whoever reads next learns it.
            LOG.debug("%s: the child process stopped listening", self._label)

    def _body(self, kind: Kind) -> bytes:
        return self.child.wire.body(self._expect(kind))

    def _expect(self, kind: Kind) -> int:
        """Return the length of the next frame, which must be of this kind."""
        found, length = self.child.wire.next()
        if found is Kind.failure:
            raise self.failed(msgspec.msgpack.decode(self.child.wire.body(length, MESSAGE), type=Failure))
        if found is not kind:
            raise Garbled(f"{found.name}, expected {kind.name}")
        return length


@contextmanager
def conversation(
    task: str, payload: bytes, parameters: msgspec.Struct, allowance: Allowance, label: str
) -> Iterator[Conversation]:
    """Run a task in a child process (see the package)."""
    request = Request(task, allowance.memory, allowance.seconds, len(payload), msgspec.msgpack.encode(parameters))
    mine, pool = owner(), children()
    talk = Conversation(pool.take(mine), allowance, label)
    try:
        with mine.stopping(talk.kill), _Watch(talk) as watch:
            try:
                talk.begin(request, pool.renewed)
                watch.allow(allowance.seconds)
                talk.give(payload)
                yield talk
                talk.finish()
            except EOFError as error:
                raise talk.died() from error
            except (Garbled, msgspec.DecodeError, UnicodeDecodeError) as error:
                raise talk.garbled(error) from error
            except ImageError as error:
                talk.collect()
                raise talk.judged(error) from error
            talk.collect()
    finally:
        pool.give_back(talk.child, talk.over and talk.usable)


class _Watch:
    """A thread that kills a child when its time is up.

    It counts at most two ticks at once, so that a parent that was stopped for a while does not blame the child.
    """

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="mdmf-watch", daemon=True)

    def __enter__(self) -> _Watch:
        self.allow(START_SECONDS)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        # Another request may use the child afterwards.
        self._thread.join()

    def allow(self, seconds: float) -> None:
        """Kill the child these seconds from now."""
        with self._changed:
            self._left, self._last = seconds, time.monotonic()
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._over:
                self._changed.wait(min(_TICK, self._left))
                now = time.monotonic()
                self._left -= min(now - self._last, 2 * _TICK)
                self._last = now
                if self._left <= 0 and not self._over:
                    self._talk.slow = True
                    self._talk.kill()
                    return


def _ending(code: int) -> str:
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"

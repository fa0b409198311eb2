"""Frames between a parent and its child: a kind, a length, and as many bytes. Both ends bound every length."""

from __future__ import annotations

import os
import struct
from enum import Enum

import msgspec

MESSAGE = 2**20
"""The most bytes of a message. Only payloads and arrays may be longer, and their lengths are agreed on before."""

_HEAD = struct.Struct("<cQ")
_CHUNK = 2**20  # bytes written at once


class Kind(Enum):
    """The kinds of frames."""

    request = b"Q"  # parent: a Request
    payload = b"P"  # parent: the bytes that a task works on
    message = b"M"  # either: a struct of the task
    ready = b"R"  # child: it has imported the task
    array = b"A"  # child: the bytes of an array
    failure = b"F"  # child: a Failure, in place of anything else; the request is over
    done = b"D"  # child: a Done; the request is over


class Request(msgspec.Struct, frozen=True):
    """One task for the child.

    memory: bytes that the task may allocate.  seconds: of CPU time.  size: bytes of the payload.
    parameters: a struct of the task, encoded.
    """

    task: str
    memory: int
    seconds: float
    size: int
    parameters: bytes


class Failure(msgspec.Struct, frozen=True):
    """The reason why a task failed.

    code: of an ImageError.  spent: as in Done.
    """

    code: str
    text: str
    spent: bool


class Done(msgspec.Struct, frozen=True):
    """The end of a task.

    spent: the child holds much more memory than at its start, or may be damaged, and ends.
    """

    spent: bool


class Garbled(Exception):
    """A frame that is not what the protocol says comes next."""


class Wire:
    """One end of a pair of pipes. It does not own its descriptors.

    Raises EOFError if the other end has gone, and Garbled for a frame of another kind or length.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        # A buffered reader, because its read() fills large bytes without a second copy.
        self._incoming = open(incoming, "rb", closefd=False)  # noqa: SIM115 (a descriptor has no path)
        self._outgoing = outgoing

    def send(self, kind: Kind, body: bytes | memoryview = b"") -> None:
        view = memoryview(body).cast("B")
        head = _HEAD.pack(kind.value, view.nbytes)
        try:
            if view.nbytes <= MESSAGE:
                self._write(memoryview(head + view))
            else:
                self._write(memoryview(head))
                self._write(view)
        except (BrokenPipeError, ConnectionError) as error:
            raise EOFError from error

    def next(self) -> tuple[Kind, int]:
        """Return the kind and the length of the next frame. Its body must be read next."""
        head = self._incoming.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise EOFError
        kind, length = _HEAD.unpack(head)
        try:
            return Kind(kind), length
        except ValueError as error:
            raise Garbled(f"a frame of kind {kind!r}") from error

    def body(self, length: int, most: int = MESSAGE) -> bytes:
        if length > most:
            raise Garbled(f"a frame of {length} bytes, expected at most {most}")
        body = self._incoming.read(length)
        if len(body) < length:
            raise EOFError
        return body

    def fill(self, view: memoryview) -> None:
        """Read the body of a frame into a buffer of the same length."""
        while view.nbytes:
            count = self._incoming.readinto(view)
            if not count:
                raise EOFError
            view = view[count:]

    def _write(self, view: memoryview) -> None:
        while view.nbytes:
            view = view[os.write(self._outgoing, view[:_CHUNK]) :]

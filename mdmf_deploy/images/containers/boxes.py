"""Boxes, the frame of ISO base media files (ISO/IEC 14496-12, section 4.2), of JP2 and of JPEG XL files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mdmf_deploy.errors import ImageError

MOST_BOXES = 2**17
"""Boxes in one box. Nothing that a camera or program writes comes near."""


class Box(NamedTuple):
    """A box: its four-letter kind, where its body starts, and where it ends. `end` may lie behind the data's end."""

    kind: bytes
    start: int
    end: int


def boxes(data: bytes, start: int, end: int, format: str) -> Iterator[Box]:
    """Yield the boxes in data[start:end], in order.

    Raises ImageError: corrupt if a size is smaller than the box's own header, or there are more than MOST_BOXES, and
    truncated if a header is cut.
    """
    for _ in range(MOST_BOXES):
        if end - start < 8:
            return
        size, header = int.from_bytes(data[start : start + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        elif size == 0:  # up to the end of what holds it
            size = end - start
        if start + header > end:
            raise ImageError("truncated", f"{format}: it ends in the header of a box")
        if size < header:
            raise ImageError("corrupt", f"{format}: a box claims {size} bytes, fewer than its own header takes")
        yield Box(data[start + 4 : start + 8], start + header, start + size)
        start += size
    raise ImageError("corrupt", f"{format}: it holds more than {MOST_BOXES} boxes")


def children(data: bytes, parent: Box, format: str, skip: int = 0) -> Iterator[Box]:
    """Yield the boxes in the body of a box, behind its first `skip` bytes.

    Raises ImageError: truncated if the data end before the parent does, and corrupt if a child does not fit into it.
    """
    if parent.end > len(data):
        raise ImageError("truncated", f"{format}: it ends inside its header ({name_of(parent.kind)})")
    for box in boxes(data, parent.start + skip, parent.end, format):
        if box.end > parent.end:
            raise ImageError("corrupt", f"{format}: a box ({name_of(box.kind)}) is larger than the box that holds it")
        yield box


def made(kind: bytes, *parts: bytes) -> bytes:
    """Return a box with this body."""
    body = b"".join(parts)
    return (len(body) + 8).to_bytes(4, "big") + kind + body


def name_of(kind: bytes) -> str:
    """Return a printable name of a box or codec."""
    return kind.decode("ascii", "replace").strip() if kind.isascii() and kind.decode().isprintable() else kind.hex()


class Fields:
    """Big-endian fields of a box's body, read from its start."""

    def __init__(self, data: bytes, box: Box, format: str) -> None:
        if box.end > len(data):
            raise ImageError("truncated", f"{format}: it ends inside its header ({name_of(box.kind)})")
        self._data, self._at, self._box, self._format = data, box.start, box, format

    def bytes(self, count: int) -> bytes:
        """Return the next bytes. Raises ImageError corrupt if the box holds fewer."""
        end = self._at + count
        if end > self._box.end:
            raise ImageError("corrupt", f"{self._format}: a box ({name_of(self._box.kind)}) ends before its fields do")
        found = self._data[self._at : end]
        self._at = end
        return found

    def number(self, size: int) -> int:
        """Return the next unsigned integer of `size` bytes."""
        return int.from_bytes(self.bytes(size), "big")

    def numbers(self, size: int, count: int) -> tuple[int, ...]:
        """Return the next `count` unsigned integers of `size` bytes."""
        found = self.bytes(size * count)
        return tuple(int.from_bytes(found[at : at + size], "big") for at in range(0, size * count, size))

    @property
    def left(self) -> int:
        """The number of bytes that have not been read."""
        return self._box.end - self._at

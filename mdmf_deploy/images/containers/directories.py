"""Image file directories of TIFF files: entries by tag, and their values. Classic TIFF and BigTIFF, both byte orders.

Nothing here allocates more than it is asked for, however many values an entry declares.
Source: TIFF Revision 6.0, section 2, and the BigTIFF design by libtiff.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import ImageError

# Field type -> bytes of a value.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_MOST_ENTRIES = 2**16 - 1  # in a classic TIFF, because there are no more tags
_SUB_IFDS = 330
# Field types of unsigned integers. Directories' offsets are of types of their own.
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag of a directory.  kind: its field type.  at: the offset of its first value in the file."""

    kind: int
    count: int
    at: int

    @property
    def size(self) -> int:
        """Bytes of all values. 0 for an unknown field type."""
        return _SIZES.get(self.kind, 0) * self.count


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file writes its directories.

    order: "<" or ">".  big: whether it is a BigTIFF.  first: the offset of the first directory.
    """

    order: str
    big: bool
    first: int

    @property
    def inline(self) -> int:
        """The most bytes of values that stand in the entry itself."""
        return 8 if self.big else 4


class Directory(NamedTuple):
    """One directory: its entries by tag, the tags that it has more than once, and the offset of the next one, or 0."""

    entries: dict[int, Entry]
    repeated: frozenset[int]
    next: int


def layout(data: bytes) -> Layout:
    """Read the header of a file that begins like a TIFF. Raises ImageError truncated."""
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    try:
        first = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, 8 if big else 4)[0]
    except struct.error as error:
        raise ImageError("truncated", "tiff: it ends in its header") from error
    return Layout(order, big, first)


def directory(data: bytes, file: Layout, at: int) -> Directory:
    """Read the directory at an offset. Raises ImageError truncated or corrupt."""
    entries: dict[int, Entry] = {}
    repeated = set()
    head, pointer = (struct.Struct(file.order + form) for form in (("Q", "Q") if file.big else ("H", "I")))
    record = struct.Struct(file.order + ("HHQ8x" if file.big else "HHI4x"))
    try:
        count = head.unpack_from(data, at)[0]
        if count > _MOST_ENTRIES:
            raise ImageError("corrupt", f"tiff: its first directory has {count} entries")
        start = at + head.size
        end = start + count * record.size
        next = pointer.unpack_from(data, end)[0] if end + pointer.size <= len(data) else 0
        if end > len(data):
            raise ImageError("truncated", "tiff: it ends in its first directory")
        for place, (tag, kind, number) in enumerate(record.iter_unpack(memoryview(data)[start:end])):
            if tag in entries:
                repeated.add(tag)
                continue
            value = start + (place + 1) * record.size - file.inline
            if _SIZES.get(kind, 0) * number > file.inline:
                value = pointer.unpack_from(data, value)[0]
            entries[tag] = Entry(kind, number, value)
    except struct.error as error:
        raise ImageError("truncated", "tiff: its first directory is not there") from error
    return Directory(entries, frozenset(repeated), next)


def values(data: bytes, file: Layout, entry: Entry | None, most: int) -> NDArray[np.unsignedinteger]:
    """Return the first values of an entry, at most so many. None, or another type than unsigned integers, has none.

    Raises ImageError truncated if they lie beyond the end of the file.
    """
    if entry is None or entry.kind not in _INTEGERS:
        return np.empty(0, np.uint8)
    count = min(entry.count, most)
    if entry.at + count * _SIZES[entry.kind] > len(data):
        raise ImageError("truncated", "tiff: it ends before the values in its first directory")
    return np.frombuffer(data, file.order + _INTEGERS[entry.kind], count, entry.at)


def directories(data: bytes, file: Layout, most: int, fields: int) -> Iterator[Directory]:
    """Yield the first directory, those that it contains, and those that follow it, each once.

    Skips the ones that are cut or have more than `fields` entries, and ends after `most`. A careful reader looks at
    them for what they say about the first, so their damage does not count.
    """
    seen: set[int] = set()
    waiting = [file.first]
    while waiting and len(seen) < most:
        at = waiting.pop()
        if at in seen or not at:
            continue
        seen.add(at)
        try:
            if _count(data, file, at) > fields:
                continue
            found = directory(data, file, at)
            inner = values(data, file, found.entries.get(_SUB_IFDS), most)
        except ImageError:
            continue
        yield found
        waiting += [found.next, *map(int, inner[::-1])]


def only(data: bytes, file: Layout, entries: dict[int, Entry]) -> bytes:
    """Return a classic TIFF with these entries in its only directory. All other bytes keep their place.

    Pillow does not read a big-endian BigTIFF.  Raises ImageError too_many_bytes for a file beyond 4 GiB.
    """
    order = file.order
    if len(data) + sum(entry.size + 16 for entry in entries.values()) >= 2**32:
        raise ImageError("too_many_bytes", f"tiff: {len(data)} bytes are more than a classic TIFF can hold")
    behind = bytearray(len(data) % 2)  # values begin at even offsets
    records = bytearray()
    for tag, entry in sorted(entries.items()):
        kind = {16: 4, 18: 13}.get(entry.kind, entry.kind)
        if entry.size > file.inline and kind == entry.kind:
            value = struct.pack(order + "I", entry.at)
        else:
            value = data[entry.at : entry.at + entry.size]
            if kind != entry.kind:
                value = values(data, file, entry, entry.count).astype(order + "u4").tobytes()
            if len(value) > 4:
                at = len(data) + len(behind)
                behind += value + bytes(len(value) % 2)
                value = struct.pack(order + "I", at)
        records += struct.pack(order + "HHI", tag, kind, entry.count) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", len(data) + len(behind))
    behind += struct.pack(order + "H", len(entries)) + records + bytes(4)
    return b"".join((head, memoryview(data)[len(head) :], behind))


def _count(data: bytes, file: Layout, at: int) -> int:
    return int.from_bytes(data[at : at + (8 if file.big else 2)], "little" if file.order == "<" else "big")

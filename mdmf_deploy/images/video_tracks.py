"""The outline of a video file: whether it is whole, and whether it has a picture track. No codec is involved.

OpenCV only says that it cannot open a file. This module finds out why, reading headers alone, in time bounded by
_MOST_PARTS.
Sources: ISO/IEC 14496-12 (MP4, QuickTime), RFC 8794 and RFC 9559 (EBML, Matroska), the OpenDML AVI format.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_MOST_PARTS = 10_000  # of one file, so that a file of many small parts ends
_MOST_TRACKS = 1_000
_BOXES = (b"moov", b"trak", b"mdia")  # that lead to a track's kind
_SEGMENT, _TRACKS, _ENTRY, _TYPE, _CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0x83, 0x1F43B675
_UNKNOWN = -1  # the size of a live stream's part


@dataclass(frozen=True, slots=True)
class Outline:
    """A video file without its pictures.

    whole: whether the file reaches as far as its structure says, and has the part that describes its tracks.
    kinds: what its tracks hold, such as "vide" and "soun", as each format calls it. Empty if no track is described.
    """

    whole: bool
    kinds: frozenset[str]

    @property
    def pictures(self) -> bool:
        """Whether any track holds pictures."""
        return bool(self.kinds & {"vide", "vids", "matroska 1"})


def outline(path: str, format: str) -> Outline:
    """Return the outline of a file in a format of magic.video_format. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:  # noqa: PTH123 (a path as OpenCV gets it)
        end = os.fstat(file.fileno()).st_size
        walk = {"mp4": _iso, "mov": _iso, "webm": _matroska, "mkv": _matroska, "avi": _avi}[format]
        return walk(file, end)


def _iso(file: BinaryIO, end: int) -> Outline:
    kinds: set[str] = set()
    described = False
    reach = 0
    waiting = [(0, end)]
    parts = 0
    while waiting and parts < _MOST_PARTS:
        at, stop = waiting.pop()
        while at + 8 <= stop and parts < _MOST_PARTS:
            parts += 1
            size, kind, head = _box(file, at, stop)
            if size < head:
                return Outline(False, frozenset(kinds))
            reach = max(reach, at + size)
            if kind == b"hdlr":
                kinds.add(_at(file, at + head + 8, 4).decode("latin-1"))
            described |= kind == b"moov"
            if kind in _BOXES and len(waiting) < _MOST_TRACKS:
                waiting.append((at + head, min(at + size, stop)))
            at += size
    return Outline(described and reach <= end, frozenset(kinds))


def _box(file: BinaryIO, at: int, stop: int) -> tuple[int, bytes, int]:
    """Return a box's size, its type, and the size of its header (ISO/IEC 14496-12, section 4.2)."""
    head = _at(file, at, 16)
    size = int.from_bytes(head[:4], "big")
    if size == 1:
        return int.from_bytes(head[8:16], "big"), head[4:8], 16
    return size or stop - at, head[4:8], 8


def _matroska(file: BinaryIO, end: int) -> Outline:
    kinds: set[str] = set()
    described, whole = False, True
    for number, at, size in _elements(file, 0, end):
        if number != _SEGMENT:
            continue
        whole = size == _UNKNOWN or at + size <= end
        for part, start, length in _elements(file, at, end):
            if part == _TRACKS:
                described = True
                kinds |= _track_types(file, start, min(end, start + max(0, length)))
            if part == _CLUSTER and length == _UNKNOWN:
                break
        break
    return Outline(described and whole, frozenset(kinds))


def _track_types(file: BinaryIO, start: int, end: int) -> set[str]:
    return {
        f"matroska {int.from_bytes(_at(file, at, size), 'big')}"
        for entry, first, length in _elements(file, start, end)
        if entry == _ENTRY
        for element, at, size in _elements(file, first, min(end, first + max(0, length)))
        if element == _TYPE and 0 < size <= 8
    }


def _elements(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the ID of each element, where its data begin, and their size (RFC 8794, sections 4 to 6)."""
    for _ in range(_MOST_PARTS):
        # No system seeks as far as a damaged size may say.
        head = _at(file, at, 12) if at < end else b""
        if not head or not head[0]:
            return
        id_length = 9 - head[0].bit_length()
        rest = head[id_length:]
        if id_length > 4 or not rest or not rest[0]:
            return
        length = 9 - rest[0].bit_length()
        size = int.from_bytes(rest[:length], "big") & ((1 << 7 * length) - 1)
        start = at + id_length + length
        unknown = size == (1 << 7 * length) - 1
        yield int.from_bytes(head[:id_length], "big"), start, _UNKNOWN if unknown else size
        if unknown:
            return
        at = start + size


def _avi(file: BinaryIO, end: int) -> Outline:
    whole = int.from_bytes(_at(file, 4, 4), "little") + 8 <= end
    # The stream headers come first, so the first part of the file holds them all.
    data = _at(file, 0, 1 << 16)
    kinds: set[str] = set()
    at = data.find(b"strh")
    while at >= 0 and len(kinds) < _MOST_TRACKS:
        kinds.add(data[at + 8 : at + 12].decode("latin-1"))
        at = data.find(b"strh", at + 4)
    return Outline(whole, frozenset(kinds))


def _at(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)

"""The few tags of TIFF and EXIF that hold claims (TIFF 6.0, section 2; Exif 3.0, section 4.6)."""

from __future__ import annotations

import struct
from typing import NamedTuple

IMAGE_DESCRIPTION, MAKE, MODEL, SOFTWARE = 270, 271, 272, 305
XMP, IPTC, USER_COMMENT, C2PA = 700, 33723, 37510, 52545
_EXIF_IFD = 34665
_WANTED = {IMAGE_DESCRIPTION, MAKE, MODEL, SOFTWARE, XMP, IPTC, USER_COMMENT, C2PA, _EXIF_IFD}

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_MOST_ENTRIES, _MOST_IFDS = 1000, 16
MOST_BYTES = 256 * 2**10
"""Bytes of one value that are read."""


def tags(data: bytes) -> dict[int, bytes]:
    """Return the bytes of the tags that hold claims, from the first IFD and its EXIF IFD. Damaged ones are left out.

    C2PA is taken from any IFD, because writers put it into the first or into one of its own. A value longer than
    MOST_BYTES is cut.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return {}
    layout = _BIG if struct.unpack_from(f"{order}H", data, 2)[0] == 43 else _CLASSIC
    found, following = _ifd(data, order, layout, layout.offset(data, order, 8 if layout is _BIG else 4))
    exif = found.pop(_EXIF_IFD, b"")
    if len(exif) in (4, 8):
        place = struct.unpack(f"{order}{'I' if len(exif) == 4 else 'Q'}", exif)[0]
        found |= _only(USER_COMMENT, _ifd(data, order, layout, place)[0])
    for _ in range(_MOST_IFDS):
        if not following or C2PA in found:
            break
        values, following = _ifd(data, order, layout, following)
        found |= _only(C2PA, values)
    return found


def _only(tag: int, values: dict[int, bytes]) -> dict[int, bytes]:
    return {tag: values[tag]} if tag in values else {}


class _Layout(NamedTuple):
    """The codes of struct for the number of an IFD's entries, for an entry without its value, and for an offset."""

    number: str
    entry: str
    place: str

    def offset(self, data: bytes, order: str, at: int) -> int:
        """Return the offset that stands at a place, or 0 if it is not there."""
        width = struct.calcsize(order + self.place)
        number: int = struct.unpack_from(order + self.place, data, at)[0] if at + width <= len(data) else 0
        return number


_CLASSIC, _BIG = _Layout("H", "HHI", "I"), _Layout("Q", "HHQ", "Q")


def _ifd(data: bytes, order: str, layout: _Layout, offset: int) -> tuple[dict[int, bytes], int]:
    """Return the wanted tags of the IFD at an offset, and the offset of the next one, or 0."""
    found: dict[int, bytes] = {}
    start = offset + struct.calcsize(order + layout.number)
    if start > len(data):
        return found, 0
    number = struct.unpack_from(order + layout.number, data, offset)[0]
    inline = struct.calcsize(order + layout.place)
    size = struct.calcsize(order + layout.entry) + inline
    for at in range(start, min(start + min(number, _MOST_ENTRIES) * size, len(data) - size + 1), size):
        tag, kind, count = struct.unpack_from(order + layout.entry, data, at)
        if tag not in _WANTED or kind not in _SIZES:
            continue
        length, place = _SIZES[kind] * count, at + size - inline
        if length > inline:
            place = layout.offset(data, order, place)
        if 0 < length <= len(data) - place:
            found.setdefault(tag, data[place : place + min(length, MOST_BYTES)])
    return found, layout.offset(data, order, start + number * size)

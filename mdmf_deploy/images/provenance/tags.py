"""The few tags of TIFF and EXIF that hold claims (TIFF 6.0, section 2; Exif 3.0, section 4.6)."""

from __future__ import annotations

import struct

IMAGE_DESCRIPTION, MAKE, MODEL, SOFTWARE = 270, 271, 272, 305
XMP, IPTC, USER_COMMENT, C2PA = 700, 33723, 37510, 52545
_EXIF_IFD = 34665
_WANTED = {IMAGE_DESCRIPTION, MAKE, MODEL, SOFTWARE, XMP, IPTC, USER_COMMENT, C2PA, _EXIF_IFD}

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_MOST_ENTRIES = 1000
MOST_BYTES = 256 * 2**10
"""Bytes of one value that are read."""


def tags(data: bytes) -> dict[int, bytes]:
    """Return the bytes of the tags that hold claims, from the first IFD and its EXIF IFD. Damaged ones are left out.

    A value longer than MOST_BYTES is cut.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return {}
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    found = _ifd(data, order, big, struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)[0])
    exif = found.pop(_EXIF_IFD, b"")
    if len(exif) in (4, 8):
        offset = struct.unpack(f"{order}{'I' if len(exif) == 4 else 'Q'}", exif)[0]
        found |= {tag: value for tag, value in _ifd(data, order, big, offset).items() if tag == USER_COMMENT}
    return found


def _ifd(data: bytes, order: str, big: bool, offset: int) -> dict[int, bytes]:
    head, entry, inline = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    start = offset + struct.calcsize(order + head)
    if start > len(data):
        return {}
    count = min(struct.unpack_from(order + head, data, offset)[0], _MOST_ENTRIES)
    size = struct.calcsize(order + entry) + inline
    found: dict[int, bytes] = {}
    for at in range(start, min(start + count * size, len(data) - size + 1), size):
        tag, kind, number = struct.unpack_from(order + entry, data, at)
        if tag not in _WANTED or kind not in _SIZES:
            continue
        length, place = _SIZES[kind] * number, at + size - inline
        if length > inline:
            place = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, place)[0]
        if 0 < length <= len(data) - place:
            found.setdefault(tag, data[place : place + min(length, MOST_BYTES)])
    return found

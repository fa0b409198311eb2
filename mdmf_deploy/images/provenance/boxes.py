"""Boxes of ISO base media files, and the metadata items of HEIF and AVIF (ISO/IEC 14496-12, sections 4.2 and 8.11)."""

from __future__ import annotations

from collections.abc import Iterator

EXIF_ITEM, XMP_ITEM = b"Exif", b"mime"
_MOST_ITEMS = 1000


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each box, and where its contents begin and end."""
    while start + 8 <= end:
        size, kind, head = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16]), 16
        elif size == 0:
            size = end - start
        if size < head:
            return
        yield kind, start + head, min(start + size, end)
        start += size


def items(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each EXIF and XMP item that a meta box lists, and where it begins and ends.

    An item in several extents is left out: metadata are small, so that no writer splits them.
    """
    parts = {kind: (a, b) for (kind, a, b), _ in zip(boxes(data, start + 4, end), range(100), strict=False)}
    if b"iinf" not in parts or b"iloc" not in parts:
        return
    kinds = dict(_kinds(data, *parts[b"iinf"]))
    idat = parts.get(b"idat", (0, 0))[0]
    for item, method, offset, length in _places(data, *parts[b"iloc"], frozenset(kinds)):
        begin = offset + (idat if method == 1 else 0)
        if method in (0, 1) and begin + length <= len(data):
            yield kinds[item], begin, begin + length


def _kinds(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number and kind of each item of an iinf box that may hold claims (section 8.11.6)."""
    start += 6 if _number(data, start, 1) == 0 else 8
    for (_, at, stop), _ in zip(boxes(data, start, end), range(_MOST_ITEMS), strict=False):
        version = _number(data, at, 1)
        if version not in (2, 3):
            continue
        width = 2 if version == 2 else 4
        kind, rest = data[at + 6 + width : at + 10 + width], data[at + 10 + width : min(stop, at + 600)]
        if kind == EXIF_ITEM or (kind == XMP_ITEM and b"application/rdf+xml" in rest):
            yield _number(data, at + 4, width), kind


def _places(data: bytes, start: int, end: int, wanted: frozenset[int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, construction method, offset and length of the wanted items of an iloc box (section 8.11.3)."""
    version, sizes, at = _number(data, start, 1), _number(data, start + 4, 2), start + 6
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    width = 4 if version == 2 else 2
    count, at = _number(data, at, width), at + width
    for _ in range(min(count, _MOST_ITEMS)):
        item, at = _number(data, at, width), at + width
        method = _number(data, at, 2) & 15 if version else 0
        at += 4 if version else 2
        base, at = _number(data, at, base_size), at + base_size
        extents, at = _number(data, at, 2), at + 2
        offset = _number(data, at + index_size, offset_size)
        length = _number(data, at + index_size + offset_size, length_size)
        at += extents * (index_size + offset_size + length_size)
        if at > end:
            return
        if item in wanted and extents == 1:
            yield item, method, base + offset, length


def _number(data: bytes, at: int, size: int) -> int:
    """Return an unsigned number. Bytes that are not there count as zero, because damage must not hide other boxes."""
    return int.from_bytes(data[at : at + size])

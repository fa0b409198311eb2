"""JPEGs cut short within their pixels' data, and JPEGs that lack only their end marker."""

from __future__ import annotations

import re

END = b"\xff\xd9"
# A marker in or behind the data of a scan, other than a stuffed FF, a restart or a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def scans(data: bytes) -> list[tuple[int, int]]:
    """Return the first offset of each scan's data, and the one behind its last byte (ITU T.81, B.1.1.5)."""
    found = []
    at = 2
    while data[at : at + 2] not in (b"", END):
        marker, after = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            end = _MARKER.search(data, after)
            stop = len(data) if end is None else end.start()
            found.append((after, stop))
            after = stop
        at = after
    return found


def cut(data: bytes, share: float) -> bytes:
    """Return a JPEG with this share of the bytes of its scans, 0 to 1, closed by an end marker."""
    places = scans(data)
    left = int(share * sum(stop - start for start, stop in places))
    for start, stop in places:
        if left < stop - start:
            return data[: start + left].removesuffix(b"\xff") + END
        left -= stop - start
    return without_end(data) + END


def without_end(data: bytes) -> bytes:
    """Return a JPEG without its end marker and what follows it."""
    return data[: scans(data)[-1][1]]

"""The orientation in a block of EXIF (CIPA DC-008, section 4.6), which is a small TIFF."""

from __future__ import annotations

_ORIENTATION = 0x0112


def orientation_in(exif: bytes) -> int:
    """Return the orientation, 1 to 8. A missing or unreadable one is 1, since it holds no pixels.

    exif: from its byte order mark on, or from "Exif" and two more bytes before it.
    """
    if exif[:4] == b"Exif":
        exif = exif[6:]
    order = {b"II": "little", b"MM": "big"}.get(exif[:2])
    if order is None:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)  # type: ignore[arg-type]

    entries = number(4, 4)
    for n in range(number(entries, 2)):
        at = entries + 2 + 12 * n
        if at + 12 > len(exif):
            return 1
        if number(at, 2) == _ORIENTATION:
            # The type should be SHORT. Some writers use LONG, whose value is in the same bytes only if little-endian.
            value = number(at + 8, 4 if number(at + 2, 2) == 4 else 2)
            return value if 1 <= value <= 8 else 1
    return 1

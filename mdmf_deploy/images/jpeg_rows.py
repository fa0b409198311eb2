"""Decode only the first rows of a JPEG, from a copy of the file whose header declares a smaller height.

libjpeg decodes from the top and stops at the declared height. The rows above come out unchanged, except the last one:
colours stored at half the height are interpolated with the row below. So the copy keeps one more row of blocks than
needed.

A file is shortened only if its errors are known without decoding the rest. It must be sequential, Huffman-coded and of
one scan: the first marker after the scan's start, other than restarts, is the end of the image. Nothing below the
needed rows of such a file can be an error, because libjpeg accepts every bit pattern as coefficients and fills a scan
that ends early with grey.
"""

from __future__ import annotations

import re

_SOF0, _SOF1, _SOS, _EOI = 0xC0, 0xC1, 0xDA, 0xD9
_HIGHEST = 65_500  # libjpeg refuses more (JPEG_MAX_DIMENSION)
_TABLES = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # DHT, DQT, DRI, COM, APPn
# A marker in the entropy-coded data, other than a stuffed FF, a restart or a fill byte.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def shortened(data: bytes, rows: int) -> bytes | None:
    """Return the file with a smaller height that leaves its first `rows` rows, as stored, unchanged.

    Return None if that saves nothing, or if only decoding the file's end would show whether it is whole.
    """
    try:
        return _shortened(data, rows)
    except (IndexError, ValueError, ZeroDivisionError):  # the headers are cut, or lack components or sampling
        return None


def _shortened(data: bytes, rows: int) -> bytes | None:
    found = _frame_and_scan(data)
    if found is None:
        return None
    frame, scan = found
    # Bytes of the frame's header: length 2, precision 1, height 2, width 2, components 1, then 3 per component.
    components = data[frame + 7]
    block = 8 * max(data[frame + 9 + 3 * n] & 15 for n in range(components))
    height = (-(-rows // block) + 1) * block
    if not height < _length(data, frame + 3) <= _HIGHEST:
        return None
    end = MARKER.search(data, scan + _length(data, scan))
    if end is None or end[0][1] != _EOI:
        return None
    return b"".join((data[: frame + 3], height.to_bytes(2, "big"), data[frame + 5 :]))


def _frame_and_scan(data: bytes) -> tuple[int, int] | None:
    """Return the offsets of the only frame header and the first scan header, behind their markers."""
    frame: int | None = None
    at = 2
    while data[at] == 0xFF:
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker == _SOS:
            return None if frame is None else (frame, at)
        if marker in (_SOF0, _SOF1) and frame is None:
            frame = at
        elif marker not in _TABLES:
            return None
        at += _length(data, at)
    return None


def _length(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]

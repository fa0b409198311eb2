"""How much of a JPEG must be decoded to know its first rows: a copy of the file that says it is no higher.

libjpeg decodes from the top. Told of a smaller height it stops there, and the rows above come out as they would have,
but for the last: its colours, where they are stored at half the height, are interpolated with the row below. So the
copy keeps one row of blocks more than is needed. Only files are shortened whose fate is known without decoding the
rest: sequential, Huffman-coded, of one scan, that is, the first marker after the scan's start, other than restarts, is
the end of the image. In such a file nothing behind the rows asked for can be an error: libjpeg takes every bit pattern
for coefficients, and a scan that ends early for grey.
"""

from __future__ import annotations

import re

_SOF0, _SOF1, _SOS, _EOI = 0xC0, 0xC1, 0xDA, 0xD9
_HIGHEST = 65_500  # libjpeg refuses more (JPEG_MAX_DIMENSION)
_TABLES = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # DHT, DQT, DRI, COM, APPn
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # not a stuffed FF, a restart or a fill byte


def shortened(data: bytes, rows: int) -> bytes | None:
    """The file with its height lowered so far that its first `rows` rows stay as they are, from the top as stored.

    None where nothing is saved, or where the file's end would have to be decoded to know whether it is whole.
    """
    try:
        return _shortened(data, rows)
    except (IndexError, ValueError, ZeroDivisionError):  # the headers are cut, have no components or no sampling
        return None


def _shortened(data: bytes, rows: int) -> bytes | None:
    found = _frame_and_scan(data)
    if found is None:
        return None
    frame, scan = found
    # Of the frame's header: length 2, precision 1, height 2, width 2, components 1, then 3 a component.
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
    """Where the only frame header and the first scan header begin, behind their markers."""
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

"""Pillow's JPEG decoder, driven so that it tells whether the pixels are there.

libjpeg invents what it lacks: once it meets a marker, a scan that ends early continues as grey, with a warning that
Pillow hides. So an end marker behind a tenth of a photograph makes it "whole". Without a marker libjpeg waits for more
data instead. The decoder therefore gets each scan without the marker that follows it, and a few bytes of ones in its
place. Every scan is padded with ones, and no Huffman code consists of them (T.81, annex C), so they stand in for two
blocks at most.

- One scan: the decoder either finishes its rows, or it waits, because pixels are missing.
- Several scans: when a scan is complete, libjpeg looks for the next marker and takes in all bytes. If blocks are
  missing, it leaves bytes over, at least for every second byte of ones. Scans that refine averages are bare bits, so
  these are counted. Where a long run of blocks gets nothing but refinements, a cut within its last bits goes unseen.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from PIL import Image, JpegImagePlugin

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers.jpeg import Jpeg

_ONES = b"\xff\x00"  # a byte of ones. FF in entropy-coded data is followed by a zero.
_PROBES = 16
_LOOKAHEAD = 8 * _ONES  # libjpeg wants 64 bits in its buffer before it decodes
_MISSING = "jpeg: some of its pixels are missing; get the whole file"
# Bytes are fed in blocks, since libjpeg does not say which of them it has used once it is done. Small blocks are slow.
_BLOCKS, _SMALLEST_BLOCK, _LARGEST_BLOCK = 32, 4096, 65_536


class _Decoder:
    """libjpeg through Pillow. `left` holds the bytes that it has not taken in."""

    def __init__(self, image: JpegImagePlugin.JpegImageFile) -> None:
        image.load_prepare()
        [tile] = image.tile
        self._decoder: Any = Image._getdecoder(image.mode, tile[0], tile[3], image.decoderconfig)
        self._decoder.setimage(image.im, tile[1])
        self.left = b""

    def feed(self, data: bytes | memoryview) -> bool:
        """Give it more bytes, and return whether it has finished. Raises OSError if the data make no sense."""
        given = b"".join((self.left, data))
        taken, error = self._decoder.decode(given)
        if taken < 0:
            if error < 0:
                raise OSError(f"libjpeg cannot decode it (error {error})")
            return True
        self.left = given[taken:]
        return False


def load(jpeg: Jpeg, zoom: int = 1) -> JpegImagePlugin.JpegImageFile:
    """Decode a whole JPEG, at 1 / zoom of its size (1, 2, 4 or 8).

    Raises ImageError truncated if some of its pixels are not there.
    """
    image = _opened(jpeg, zoom)
    _load(image, jpeg)
    return image


def load_top(jpeg: Jpeg, height: int) -> JpegImagePlugin.JpegImageFile:
    """Decode the rows of a JPEG that come out if it declares this height, at most its own.

    Raises ImageError truncated if some pixels are not there, here or below. Behind an end marker, a thirtieth of the
    data may be missing unnoticed if they belong to rows that are not decoded.
    """
    if height >= jpeg.rows:
        return load(jpeg)
    part = jpeg.with_height(height)
    image = _opened(part)
    used = _load(image, part)
    if _lacks_rows_below(jpeg, height, used):
        raise ImageError("truncated", _MISSING)
    return image


def _opened(jpeg: Jpeg, zoom: int = 1, grey: bool = False) -> JpegImagePlugin.JpegImageFile:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(jpeg.data))
    if zoom > 1:
        image.draft("L" if grey else image.mode, (max(1, image.width // zoom), max(1, image.height // zoom)))
    return image


def _load(image: JpegImagePlugin.JpegImageFile, jpeg: Jpeg) -> int:
    """Decode. Return an offset in the data that lies at or shortly before the first byte that was not used."""
    decoder = _Decoder(image)
    used = _load_rows(decoder, jpeg) if jpeg.one_pass else _load_scans(decoder, jpeg)
    image.tile = []
    return used


def _lacks_rows_below(jpeg: Jpeg, height: int, used: int) -> bool:
    """Return whether rows are missing below the first `height` ones, which were decoded from the data up to `used`.

    The rest is decoded from there without its colours and at an eighth of its size, which mostly costs reading the
    codes. Huffman codes fall into step by themselves after a wrong start. If they do not, decoding everything decides.
    """
    if "no_end_marker" in jpeg.notes:
        return not _is_whole(jpeg)
    below = jpeg.rows - height - jpeg.unit
    if below <= 0:
        return False
    data = b"".join((jpeg.data[: jpeg.scans[0].start], memoryview(jpeg.data)[used:]))
    return not _is_whole(jpeg.with_height(below, data)) and not _is_whole(jpeg)


def _is_whole(jpeg: Jpeg) -> bool:
    try:
        _load(_opened(jpeg, 8, grey=True), jpeg)
    except ImageError:
        return False
    return True


def _load_rows(decoder: _Decoder, jpeg: Jpeg) -> int:
    [scan] = jpeg.scans
    used = scan.start
    for start, block in _blocks(jpeg, scan.end):
        if decoder.feed(block):
            return used
        # `left` belongs to a unit that is not complete.
        used = max(scan.start, start + len(block) - len(decoder.left))
    if not decoder.feed(_LOOKAHEAD):
        raise ImageError("truncated", _MISSING)
    return used


def _blocks(jpeg: Jpeg, end: int) -> Iterator[tuple[int, memoryview]]:
    view = memoryview(jpeg.data)[:end]
    whole = jpeg.rows == jpeg.height
    size = end if whole else min(max(end // _BLOCKS, _SMALLEST_BLOCK), _LARGEST_BLOCK)
    for start in range(0, end, size):
        yield start, view[start : start + size]


def _load_scans(decoder: _Decoder, jpeg: Jpeg) -> int:
    start = 0
    for number, scan in enumerate(jpeg.scans, 1):
        decoder.feed(memoryview(jpeg.data)[start : scan.end])
        for ones in (_LOOKAHEAD, *_PROBES * (_ONES,)):
            decoder.feed(ones)
            if decoder.left or jpeg.lacks_bits(scan):
                raise ImageError(
                    "truncated", f"jpeg: pixels are missing in scan {number} of {len(jpeg.scans)}; get the whole file"
                )
        start = scan.end
    if not decoder.feed(b"\xff\xd9"):
        raise ImageError("truncated", _MISSING)
    return start

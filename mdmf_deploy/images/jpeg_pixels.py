"""Pillow's JPEG decoder, driven so that it tells whether the pixels are there.

libjpeg invents what it lacks: once it meets a marker, a scan that ends early continues as grey, with a warning that
Pillow hides. So an end marker behind a tenth of a photograph makes it "whole". Without a marker libjpeg waits for more
data instead. The decoder therefore gets each scan without the marker that follows it, and a few bytes of ones in its
place. Every scan is padded with ones, and no Huffman code consists of them (T.81, annex C), so they stand in for two
blocks at most.

- One scan: the decoder either finishes its rows, or it waits, because pixels are missing.
- Several scans: when a scan is complete, libjpeg looks for the next marker and takes in all bytes. If blocks are
  missing, it gives bytes back, because it wants 64 bits in its buffer and suspends without them.
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, JpegImagePlugin

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers.jpeg import Jpeg

_ONES = b"\xff\x00"  # a byte of ones. FF in entropy-coded data is followed by a zero.
_PROBES = 16
_LOOKAHEAD = 8 * _ONES  # libjpeg wants 64 bits in its buffer before it decodes
_MISSING = "jpeg: some of its pixels are missing; get the whole file"
# Bytes are fed in blocks, since libjpeg does not say which of them it has used once it is done. Small blocks are slow.
_BLOCKS, _SMALLEST_BLOCK, _LARGEST_BLOCK = 20, 8192, 65_536


class _Decoder:
    """libjpeg through Pillow. `left` holds the bytes that it has not taken in."""

    def __init__(self, image: JpegImagePlugin.JpegImageFile) -> None:
        image.load_prepare()
        [tile] = image.tile
        self._decoder: Any = Image._getdecoder(image.mode, tile[0], tile[3], image.decoderconfig)
        self._decoder.setimage(image.im, tile[1])
        self.left = b""

    def feed(self, *parts: bytes | memoryview) -> bool:
        """Give it more bytes, and return whether it has finished. Raises OSError if the data make no sense."""
        given = b"".join((self.left, *parts))
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
    header = jpeg.header(jpeg.height)
    image = _opened(header, zoom)
    try:
        if jpeg.one_pass:
            _load_rows(image, header, _coded(jpeg), lookahead=_lookahead(jpeg))
        else:
            _load_scans(image, jpeg)
    except OSError as error:
        if jpeg.arithmetic:
            # Arithmetic decoding takes any bits, but it cannot wait for more of them.
            raise ImageError("truncated", _MISSING) from error
        raise
    return image


def load_top(jpeg: Jpeg, height: int) -> JpegImagePlugin.JpegImageFile:
    """Decode the rows of a JPEG that come out if it declares this height, at most its own.

    Raises ImageError truncated if some pixels are not there, here or below. Behind an end marker, a twentieth of the
    data may be missing unnoticed if they belong to rows that are not decoded.
    """
    if height >= jpeg.height:
        return load(jpeg)
    header, coded = jpeg.header(height), _coded(jpeg)
    image = _opened(header)
    used = _load_rows(image, header, coded, min(max(len(coded) // _BLOCKS, _SMALLEST_BLOCK), _LARGEST_BLOCK))
    if _lacks_rows_below(jpeg, height, coded[used:]):
        raise ImageError("truncated", _MISSING)
    return image


def _lookahead(jpeg: Jpeg) -> bytes:
    """Return what follows the data of a scan. Encoders leave out zeros at the end of arithmetic codes (T.81, D.1.8)."""
    return bytes(4) if jpeg.arithmetic else _LOOKAHEAD


def _coded(jpeg: Jpeg) -> memoryview:
    """Return the entropy-coded data of the only scan."""
    [scan] = jpeg.scans
    return memoryview(jpeg.data)[scan.start : scan.end]


def _lacks_rows_below(jpeg: Jpeg, height: int, rest: memoryview) -> bool:
    """Return whether rows are missing below the first `height` ones.  rest: the coded data that these did not use.

    The rest is decoded without its colours and at an eighth of its size, which mostly costs reading the codes. Huffman
    codes fall into step by themselves after a wrong start. If they do not, decoding everything decides.
    """
    if "no_end_marker" in jpeg.notes:
        return not _is_whole(jpeg.header(jpeg.height), _coded(jpeg))
    if jpeg.scans[0].intervals >= _BLOCKS:
        # The structure shows that all intervals are there. Only the last of them may be short.
        return False
    below = jpeg.height - height - jpeg.unit
    if below <= 0 or _is_whole(jpeg.header(below), rest):
        return False
    return not _is_whole(jpeg.header(jpeg.height), _coded(jpeg))


def _is_whole(header: bytes, coded: memoryview) -> bool:
    try:
        _load_rows(_opened(header, 8, grey=True), header, coded)
    except ImageError:
        return False
    return True


def _opened(header: bytes, zoom: int = 1, grey: bool = False) -> JpegImagePlugin.JpegImageFile:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(header))
    if zoom > 1:
        image.draft("L" if grey else image.mode, (max(1, image.width // zoom), max(1, image.height // zoom)))
    return image


def _load_rows(
    image: JpegImagePlugin.JpegImageFile,
    header: bytes,
    coded: memoryview,
    block: int | None = None,
    lookahead: bytes = _LOOKAHEAD,
) -> int:
    """Decode a JPEG of one scan, which gets its coded data in blocks of so many bytes, or all at once.

    Return an offset in the coded data that lies at or shortly before the first byte that was not used.
    """
    decoder = _Decoder(image)
    used, block = 0, block or len(coded)
    # Each call of the decoder hands the interpreter to other threads, so there are few.
    for start in range(0, max(1, len(coded)), max(1, block)):
        part = coded[start : start + block]
        last = start + block >= len(coded)
        if decoder.feed(*((header,) if start == 0 else ()), part, *((lookahead,) if last else ())):
            break
        # `left` belongs to a unit that is not complete.
        used = max(0, start + len(part) - len(decoder.left))
    else:
        raise ImageError("truncated", _MISSING)
    image.tile = []
    return used


def _load_scans(image: JpegImagePlugin.JpegImageFile, jpeg: Jpeg) -> None:
    decoder, start = _Decoder(image), 0
    for number, scan in enumerate(jpeg.scans, 1):
        coded = memoryview(jpeg.data)[start : scan.end]
        for parts in ((coded, _lookahead(jpeg)), *_PROBES * ((_ONES,),)):
            decoder.feed(*parts)
            if decoder.left:
                raise ImageError(
                    "truncated", f"jpeg: pixels are missing in scan {number} of {len(jpeg.scans)}; get the whole file"
                )
        start = scan.end
    if not decoder.feed(b"\xff\xd9"):
        raise ImageError("truncated", _MISSING)
    image.tile = []

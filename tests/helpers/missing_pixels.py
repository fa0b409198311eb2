"""Files whose structure is whole, with all lengths and checksums right, but a part of whose pixels is not there."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from helpers.bad_inputs import encoded, filtered, grey_tiff, photo, png, tiff
from helpers.every_format import can_write, rle_bmp
from PIL import Image

SIZE = (96, 80)  # width, height
_PIXELS = photo(*SIZE)


def png_stream(share: float) -> bytes:
    """Return a PNG whose compressed stream is cut."""
    return _png(zlib.compress(filtered(_PIXELS)), share)


def png_rows(share: float) -> bytes:
    """Return a PNG whose compressed stream is whole, but has too few rows."""
    rows = int(share * SIZE[1])
    return png(*SIZE, 8, 2, filtered(_PIXELS[:rows]))


def webp(share: float, *, lossless: bool) -> bytes:
    data = encoded(_PIXELS, "WEBP", lossless=lossless)
    body = data[20 : 20 + int(share * (len(data) - 20))]
    body += b"\0" * (len(body) % 2)
    chunk = data[12:16] + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def gif_blocks(share: float) -> bytes:
    """Return a GIF whose blocks of pixels are cut, ended properly."""
    data = encoded(Image.fromarray(_PIXELS).quantize(32), "GIF")
    start = _gif_blocks(data)
    codes, at = b"", start
    while data[at]:
        codes += data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
    return data[:start] + _in_blocks(codes[: int(share * len(codes))]) + b"\0;"


def gif_end_code(share: float) -> bytes:
    """Return a GIF whose codes end properly, but after too few pixels."""
    width, height = SIZE
    few = encoded(Image.fromarray(_PIXELS[: int(share * height)]).quantize(32), "GIF")
    at = _gif_blocks(few) - 10  # the picture's place: a comma, left, top, width, height, flags, then the code size
    size = struct.pack("<HH", width, height)
    return few[:6] + size + few[10 : at + 4] + size + few[at + 8 :]


def bmp_rows(share: float) -> bytes:
    data = encoded(_PIXELS, "BMP")
    cut = data[: 54 + int(share * (len(data) - 54))]
    return cut[:2] + struct.pack("<I", len(cut)) + cut[6:]


def bmp_codes(share: float) -> bytes:
    """Return a BMP of run lengths that are cut."""
    data = rle_bmp(Image.fromarray(_PIXELS).quantize(16))
    start = int.from_bytes(data[10:14], "little")
    return data[: start + int(share * (len(data) - start)) // 2 * 2]


def tiff_strip(share: float) -> bytes:
    """Return a TIFF whose only strip declares too few bytes, and has no more."""
    rows = int(share * SIZE[1])
    data = grey_tiff(_PIXELS[:rows, :, 0], 8)
    for tag in (257, 278):
        at = data.index(struct.pack("<HHI", tag, 3, 1)) + 8
        data = data[:at] + struct.pack("<I", SIZE[1]) + data[at + 4 :]
    return data


def tiff_deflate(share: float) -> bytes:
    """Return a TIFF whose compressed strip is whole, but has too few rows."""
    packed = zlib.compress(_PIXELS[: int(share * SIZE[1]), :, 0].tobytes())
    tags = {256: SIZE[0], 257: SIZE[1], 258: 8, 259: 8, 262: 1, 273: 8, 277: 1, 278: SIZE[1], 279: len(packed)}
    return tiff({tag: (4, 1, value) for tag, value in tags.items()}, packed)


def tiff_strips(share: float) -> bytes:
    """Return a TIFF whose list of strips is shorter than its height."""
    tags = {256: SIZE[0], 257: SIZE[1], 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 8 * SIZE[0]}
    return tiff({tag: (4, 1, value) for tag, value in tags.items()}, bytes(8 * SIZE[0]))


def jpeg2000_stream(share: float) -> bytes:
    """Return a JPEG 2000 whose only tile is cut, and declares what is left."""
    data = encoded(_PIXELS, "JPEG2000", no_jp2=True)
    tile = data.index(b"\xff\x90")
    start = data.index(b"\xff\x93", tile) + 2
    left = data[: start + int(share * (len(data) - 2 - start))]
    return left[: tile + 6] + struct.pack(">I", len(left) - tile) + left[tile + 10 :] + b"\xff\xd9"


def jpeg_xl(share: float) -> bytes:
    data = encoded(_PIXELS, "JXL", lossless=True)
    return data[: int(share * len(data))]


def avif(share: float) -> bytes:
    return _item(encoded(_PIXELS, "AVIF"), share)


def heic(share: float) -> bytes:
    from pillow_heif import from_pillow

    buffer = io.BytesIO()
    from_pillow(Image.fromarray(_PIXELS)).save(buffer)
    return _item(buffer.getvalue(), share)


KINDS: dict[str, Callable[[float], bytes]] = {
    "png stream": png_stream,
    "png rows": png_rows,
    "webp lossy": lambda share: webp(share, lossless=False),
    "webp lossless": lambda share: webp(share, lossless=True),
    "gif blocks": gif_blocks,
    "gif end code": gif_end_code,
    "bmp rows": bmp_rows,
    "bmp run lengths": bmp_codes,
    "tiff strip": tiff_strip,
    "tiff deflate": tiff_deflate,
    "tiff strips": tiff_strips,
    "jpeg2000 stream": jpeg2000_stream,
    "jxl": jpeg_xl,
    "avif": avif,
    "heic": heic,
}
"""Makers by name: share of the pixels' data that is left, 0 to 1 -> bytes."""


def can_make(name: str) -> bool:
    """Return whether the libraries installed here write the format of a kind."""
    if name == "heic":
        return can_import("pillow_heif")
    if name == "jxl":
        return can_import("pillow_jxl")
    return name.split()[0] not in ("avif", "jpeg2000") or can_write(name.split()[0].upper())


def can_import(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def _png(packed: bytes, share: float) -> bytes:
    whole = png(*SIZE, 8, 2, b"")
    packed = packed[: int(share * len(packed))]
    chunk = struct.pack(">I", len(packed)) + b"IDAT" + packed + struct.pack(">I", zlib.crc32(b"IDAT" + packed))
    return whole[:33] + chunk + whole[-12:]


def _gif_blocks(data: bytes) -> int:
    """Return the offset of a GIF's first block of codes. Pillow writes a picture without a palette of its own."""
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    while data[at : at + 1] == b"!":
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    return at + 11


def _in_blocks(codes: bytes) -> bytes:
    return b"".join(bytes((len(codes[at : at + 255]),)) + codes[at : at + 255] for at in range(0, len(codes), 255))


def _item(data: bytes, share: float) -> bytes:
    """Cut the only item of an AVIF or HEIC file, and the length that iloc and mdat give (ISO/IEC 14496-12, 8.11.3)."""
    mdat = data.rindex(b"mdat") - 4
    length = len(data) - mdat - 8
    left = int(share * length)
    place = data.index(b"iloc")
    at = data.rindex(struct.pack(">I", length), place, mdat)
    cut = bytearray(data[: mdat + 8 + left])
    cut[at : at + 4] = struct.pack(">I", left)
    cut[mdat : mdat + 4] = struct.pack(">I", left + 8)
    return bytes(cut)


def pixels() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the picture of all these files, (H, W, 3)."""
    return _PIXELS

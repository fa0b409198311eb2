"""Small files that this package once judged wrongly, one maker each, with the code that they must get.

A fault in a decoder or in its use gets a file here. They are made anew by whatever Pillow is installed, so that
`pytest tests/images` runs them with the lowest and the newest decoders (CONTRIBUTING.md).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
from helpers.bad_inputs import SIZE, apng, encoded, gif, grey_tiff, jpeg, photo, png, tiff
from helpers.costly import (
    claiming_jpeg,
    empty_scans,
    flat_webp,
    flooded_gif,
    flooded_jpeg,
    inflating_png,
    long_strip,
    rle_bmp,
)
from helpers.cut_jpegs import cut, without_end
from PIL import Image

OK = "ok"


def text_chunk() -> bytes:
    """Return a PNG whose compressed text is larger than Pillow reads, as workflows of generators are."""
    return inflating_png(b"zTXt", b"workflow\0\0", 3 * 2**20)


def raw_preview() -> bytes:
    """Return a DNG whose first directory is a small preview: NewSubfileType 1 and a DNGVersion."""
    tags = {254: 1, 256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: 16}
    return tiff({tag: (4, 1, value) for tag, value in tags.items()} | {50706: (1, 4, 1025)}, bytes(range(16)))


def looped_tiff() -> bytes:
    """Return a TIFF whose directory names itself as the next one."""
    data = grey_tiff(photo()[..., 0], 8)
    return data[:-4] + data[4:8]


def signed_tiff() -> bytes:
    return grey_tiff(photo()[..., 0].astype(np.int8), 8, sample_format=2)


def bitmap_of_png() -> bytes:
    """Return a BMP whose compression is 5, a PNG."""
    body = encoded(photo(), "PNG")
    header = struct.pack("<IiiHHIIiiII", 40, *SIZE, 1, 0, 5, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + header + body


def bitmap_of_4_bits() -> bytes:
    """Return a BMP of 16 bits a pixel, 4 for alpha and each colour (BITMAPV3INFOHEADER)."""
    masks = struct.pack("<IIII", 0x0F00, 0x00F0, 0x000F, 0xF000)
    header = struct.pack("<IiiHHIIiiII", 56, 4, 4, 1, 16, 3, 32, 0, 0, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 70 + 32, 0, 0, 70) + header + bytes(32)


def xyb_jpeg() -> bytes:
    """Return a JPEG with jpegli's profile for XYB colours, known by its description."""
    name = "XYB_Per".encode("utf-16-be")
    text = b"mluc\0\0\0\0" + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(name), 28) + name
    head = struct.pack(">I4sI4s4s4s", 0, b"jxl ", 0x04400000, b"scnr", b"RGB ", b"XYZ ").ljust(128, b"\0")
    table = struct.pack(">I4sII", 1, b"desc", 144, len(text))
    body = head + table + text
    return jpeg(icc_profile=struct.pack(">I", len(body)) + body[4:])


def wrong_comment_length() -> bytes:
    """Return a JPEG with bytes between a comment's end and the next marker, which libjpeg skips."""
    return flooded_jpeg(b"\xff\xfe\0\4hippopotamus", "head")


def small_first_frame() -> bytes:
    """Return a GIF whose first picture covers a corner of its canvas. The background's colour is blue."""
    palette = b"\0\0\xff\xff\0\0"
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + palette
    return head + b",\0\0\0\0\1\0\1\0\0\x02\x02L\x01\0;"


def large_second_frame() -> bytes:
    """Return a GIF whose second picture claims to be far larger than the canvas."""
    data = gif(1)
    return data.removesuffix(b";") + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;"


def motion_photo() -> bytes:
    return jpeg() + b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(200)


def stereo() -> bytes:
    first, second = (Image.fromarray(photo(seed=seed)) for seed in range(2))
    return encoded(first, "MPO", save_all=True, append_images=[second])[:-300]


def no_frames_apng() -> bytes:
    """Return an animated PNG of no frames and no pixels."""
    return png(4, 4, 8, 2, None, [(b"acTL", bytes(8))])


def later_frames_damaged() -> bytes:
    """Return an animated PNG whose second frame is damaged."""
    data = bytearray(apng())
    at = data.index(b"fdAT") + 20
    data[at] ^= 255
    return bytes(data)


def damaged_text() -> bytes:
    """Return a PNG whose text has a wrong checksum."""
    data = bytearray(png(4, 4, 8, 0, bytes(20), [(b"tEXt", b"Comment\0hello")]))
    data[data.index(b"hello")] ^= 1
    return bytes(data)


def second_stream() -> bytes:
    """Return a PNG with bytes behind the end of its compressed pixels."""
    rows = zlib.compress(bytes(20)) + b"more"
    data = png(4, 4, 8, 0, bytes(20))
    packed = zlib.compress(bytes(20))
    chunk = struct.pack(">I", len(rows)) + b"IDAT" + rows + struct.pack(">I", zlib.crc32(b"IDAT" + rows))
    at = data.index(b"IDAT") - 4
    return data[:at] + chunk + data[at + 12 + len(packed) :]


FAILED_ONCE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a-tenth-of-a-scan.jpg": (lambda: cut(jpeg(), 0.1), "truncated"),
    "half-a-progressive-scan.jpg": (lambda: cut(jpeg(progressive=True), 0.5), "truncated"),
    "claims-100-mp.jpg": (lambda: claiming_jpeg(10_000, 10_000), "truncated"),
    "no-end-marker.jpg": (lambda: without_end(jpeg()), OK),
    "no-end-marker-progressive.jpg": (lambda: without_end(jpeg(progressive=True)), OK),
    "thousand-scans.jpg": (lambda: empty_scans(1000, side=64), "too_slow"),
    "xyb.jpg": (xyb_jpeg, "unsupported_mode"),
    "wrong-comment-length.jpg": (wrong_comment_length, OK),
    "motion-photo.jpg": (motion_photo, OK),
    "second-picture-cut.mpo": (stereo, OK),
    "web-page.jpg": (lambda: b"<!DOCTYPE html>\n<html><title>Not found</title></html>\n", "unsupported_format"),
    "pointer.jpg": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
        "unsupported_format",
    ),
    "text-of-3-mb.png": (text_chunk, OK),
    "profile-of-3-mb.png": (lambda: inflating_png(b"iCCP", b"screen\0\0", 3 * 2**20), OK),
    "damaged-text.png": (damaged_text, OK),
    "bytes-behind-the-pixels.png": (second_stream, OK),
    "no-frames.png": (no_frames_apng, "corrupt"),
    "later-frame-damaged.png": (later_frames_damaged, OK),
    "small-first-frame.gif": (small_first_frame, OK),
    "large-second-frame.gif": (large_second_frame, OK),
    "many-comments.gif": (lambda: flooded_gif(b"!\xfe\x01A\0", 300), OK),
    "no-picture.gif": (lambda: b"GIF89a\2\0\2\0\x80\0\0\0\0\0\xff\xff\xff;", "corrupt"),
    "preview.dng": (raw_preview, "unsupported_format"),
    "loop.tif": (looped_tiff, OK),
    "signed.tif": (signed_tiff, "unsupported_mode"),
    "long-strip.tif": (long_strip, "truncated"),
    "png-inside.bmp": (bitmap_of_png, "unsupported_mode"),
    "four-bits-a-colour.bmp": (bitmap_of_4_bits, "unsupported_mode"),
    "run-lengths.bmp": (lambda: rle_bmp(8, 8, b"\x08\1\0\0" * 8 + b"\0\1"), OK),
    "flat-268-mp.webp": (lambda: flat_webp(16_383, 16_383), "too_many_pixels"),
}
"""name -> (maker, code, or "ok")"""

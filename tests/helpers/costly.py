"""Small files that cost a decoder much, and floods of metadata, made in memory. One kind a function.

Every maker takes a scale, 1 for the kind's full size. Only floods, long lists and long loops become smaller with it:
tests use a smaller scale than benchmarks/hostile.py.
"""

from __future__ import annotations

import binascii
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from helpers.bad_inputs import encoded, jpeg, photo, tiff
from PIL import Image


@dataclass(frozen=True, slots=True)
class Costly:
    """A kind of file. make(scale): its bytes.  codes: the error codes that a row may have, "ok" for none."""

    make: Callable[[float], bytes]
    codes: frozenset[str]


def flat_webp(width: int, height: int) -> bytes:
    """Return a lossless WebP of one colour. Its five prefix codes have one symbol each, so a pixel takes no bits."""
    chunk = _lossless(width, height)
    return _riff(_chunk(b"VP8L", chunk))


def animated_webp(width: int, height: int, frames: int = 4) -> bytes:
    """Return an animation of single pixels on a large canvas."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    place = struct.pack("<3s3s3s3s3sB", bytes(3), bytes(3), bytes(3), bytes(3), b"\x28\0\0", 0)
    frame = _chunk(b"ANMF", place + _chunk(b"VP8L", _lossless(1, 1)))
    return _riff(_chunk(b"VP8X", b"\x02\0\0\0" + canvas) + _chunk(b"ANIM", bytes(6)) + frame * frames)


def many_scans(scans: int, side: int = 4000) -> bytes:
    """Return a grey progressive JPEG whose scans repeat one band without a new coefficient, 17 bytes a scan."""
    blocks = (side // 8) ** 2
    # One DC code and one AC code, EOB14: a run of up to 32,767 blocks without a coefficient. Both are the bit 0.
    tables = _segment(0xC4, b"\x00" + _lengths(1) + b"\0") + _segment(0xC4, b"\x10" + _lengths(1) + b"\xe0")
    first = _scan_header(0, 0) + bytes(-(-blocks // 8))
    runs, rest = divmod(blocks, 0x7FFF)
    bits = ("0" + "1" * 14) * runs + "0" + f"{rest & 0x3FFF:014b}"
    run = (
        int(bits.ljust(-(-len(bits) // 8) * 8, "1"), 2).to_bytes(-(-len(bits) // 8), "big").replace(b"\xff", b"\xff\0")
    )
    return b"".join(
        (_head(side, side, 0xC2), tables, first, (_scan_header(1, 5) + run) * scans, b"\xff\xd9"),
    )


def empty_scans(scans: int, side: int = 9000) -> bytes:
    """Return a grey progressive JPEG whose scans hold two bytes each, 12 bytes a scan."""
    tables = _segment(0xC4, b"\x00" + _lengths(1) + b"\0") + _segment(0xC4, b"\x10" + _lengths(1) + b"\0")
    scan = _scan_header(1, 5) + b"\0\0"
    return _head(side, side, 0xC2) + tables + _scan_header(0, 0) + b"\0\0" + scan * scans + b"\xff\xd9"


def claiming_jpeg(width: int, height: int) -> bytes:
    """Return a baseline JPEG of 250 bytes whose scan holds next to nothing."""
    tables = _segment(0xC4, b"\x00" + _lengths(1) + b"\0") + _segment(0xC4, b"\x10" + _lengths(1) + b"\0")
    head = _head(width, height, 0xC0) + tables + _scan_header(0, 63)
    return head + bytes(248 - len(head)) + b"\xff\xd9"


def flooded_jpeg(flood: bytes, where: str) -> bytes:
    """Return a JPEG with these bytes behind its start marker ("head"), before its end marker, or behind that one."""
    data = jpeg()
    at = {"head": 2, "tail": len(data) - 2, "trailer": len(data)}[where]
    return data[:at] + flood + data[at:]


def rle_bmp(width: int, height: int, codes: bytes) -> bytes:
    """Return a BMP of 8-bit run lengths."""
    palette = b"".join(bytes((n, n, n, 0)) for n in range(2))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 2, 2)
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(codes), 0, 0, offset) + header + palette + codes


def flooded_gif(extension: bytes, count: int) -> bytes:
    """Return a GIF with that many extensions between its header and its picture."""
    data = encoded(Image.fromarray(photo()).quantize(16), "GIF")
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:at] + extension * count + data[at:]


def large_gif(width: int, height: int, *, cover: bool) -> bytes:
    """Return a GIF whose first picture is one pixel of its canvas, or claims all of it."""
    size = struct.pack("<HH", width, height) if cover else b"\1\0\1\0"
    head = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff"
    return head + b",\0\0\0\0" + size + b"\0\x02\x02L\x01\0;"


def zeros_zlib(count: int) -> bytes:
    """Return the zlib stream of at least `count` zeros, without compressing them all: one block, repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    blocks = -(-count // 2**20)
    # Adler-32 of zeros: the sum of bytes stays 1, and the sum of sums grows by 1 a byte.
    return b"\x78\xda" + block * blocks + b"\x03\0" + struct.pack(">HH", blocks * 2**20 % 65521, 1)


def flat_png(width: int, height: int, depth: int, colour: int, *, interlaced: bool = False) -> bytes:
    """Return a black PNG. Its stream of zeros is longer than needed, by less than a mebibyte."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + -(-width * samples * depth // 8)
    return _png(
        width, height, depth, colour, zeros_zlib(row * height + (row * height if interlaced else 0)), interlaced
    )


def inflating_png(name: bytes, prefix: bytes, count: int) -> bytes:
    """Return the photo as a PNG with a compressed chunk that inflates to `count` bytes."""
    data = encoded(photo(), "PNG")
    return data[:33] + _png_chunk(name, prefix + zeros_zlib(count)) + data[33:]


def many_strips(count: int) -> bytes:
    """Return a TIFF, one pixel wide, with a strip a row. All offsets and lengths are 1, and share one list."""
    tags = {
        256: (3, 1, 1),
        257: (4, 1, count),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, count, 8),
        277: (3, 1, 1),
        278: (4, 1, 1),
        279: (4, count, 8),
    }
    return tiff(tags, b"\1\0\0\0" * count)


def deflated_tiff(width: int, height: int, inflated: int, *, declared: int | None = None) -> bytes:
    """Return a black TIFF of one deflated strip that inflates to so many bytes, and declares its length or another."""
    data = zeros_zlib(inflated)
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 273: 8, 277: 1, 278: height, 279: declared or len(data)}
    return tiff({tag: (4, 1, value) for tag, value in tags.items()}, data)


def long_strip() -> bytes:
    """Return a TIFF whose only strip claims two gigabytes."""
    tags = {256: 4000, 257: 4000, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4000, 279: 2**31 - 1}
    return tiff({tag: (4, 1, value) for tag, value in tags.items()}, bytes(1024))


def claiming_box(data: bytes, width: int, height: int) -> bytes:
    """Return an AVIF or HEIC file with another size in its ispe box (ISO/IEC 23008-12, section 6.5.3)."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def many_tiles(across: int, down: int) -> bytes:
    """Return a JPEG 2000 that declares that many tiles of 4 x 4 pixels and holds one (ISO/IEC 15444-1, A.5.1)."""
    data = bytearray(encoded(photo(64, 64), "JPEG2000", no_jp2=True))
    at = data.index(b"\xff\x51") + 6  # behind marker, length and capabilities
    struct.pack_into(">8I", data, at, 4 * across, 4 * down, 0, 0, 4, 4, 0, 0)
    return bytes(data)


def claiming_jpeg_xl(bits: int = 30) -> bytes:
    """Return a JPEG XL codestream whose header claims a square of 2**bits pixels a side (ISO/IEC 18181-1, D.2)."""
    side = 2**bits - 1
    header = 0 | 3 << 1 | side << 3 | 1 << 33  # not small, 30 bits for the height, then the ratio 1 : 1
    return b"\xff\x0a" + header.to_bytes(5, "little") + bytes(64)


def photoshop(width: int, height: int) -> bytes:
    return b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, height, width, 8, 3) + bytes(64)


def icon_of_png() -> bytes:
    """Return an icon whose only picture is a PNG that inflates to 120 million pixels."""
    body = flat_png(12_000, 10_000, 1, 0)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(body), 22) + body


def _lossless(width: int, height: int) -> bytes:
    """Return the body of a VP8L chunk of one colour (RFC 9649, section 3)."""
    header = 0x2F | (width - 1) << 8 | (height - 1) << 22
    # No transform, no cache, no meta codes; then five times: simple, one symbol, of one bit, 0.
    codes = int("000" + "1000" * 5, 2)
    reverse = int(f"{codes:023b}"[::-1], 2)
    return (header | reverse << 40).to_bytes(8, "little")


def _riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def _head(width: int, height: int, frame: int) -> bytes:
    """Return a grey JPEG up to its Huffman tables."""
    size = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\0"
    return b"\xff\xd8" + _segment(0xDB, b"\0" + b"\x08" * 64) + _segment(frame, size)


def _lengths(codes_of_one_bit: int) -> bytes:
    return bytes((codes_of_one_bit,)) + bytes(15)


def _scan_header(first: int, last: int) -> bytes:
    return _segment(0xDA, bytes((1, 1, 0, first, last, 0)))


def _png(width: int, height: int, depth: int, colour: int, packed: bytes, interlaced: bool) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks)


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", binascii.crc32(name + body))


def _avif(width: int, height: int) -> bytes:
    return claiming_box(encoded(photo(64, 64), "AVIF"), width, height)


def _heic(width: int, height: int) -> bytes:
    from pillow_heif import from_pillow

    buffer = io.BytesIO()
    from_pillow(Image.fromarray(photo(64, 64))).save(buffer)
    return claiming_box(buffer.getvalue(), width, height)


def _kind(make: Callable[[float], bytes], *codes: str) -> Costly:
    return Costly(make, frozenset(codes))


def _times(count: int, scale: float) -> int:
    return max(1, int(count * scale))


_COMMENT, _APPLICATION = b"!\xfe\x01A\0", b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
_ONE_BYTE = b"!\xfe" + b"\x01A" * 100_000 + b"\0"  # a comment in blocks of a byte
_SLOW = ("too_slow", "truncated", "corrupt")
_ONE_LINE = b"\1\1\0\0" * 250  # a pixel and an end of line, which fills the line

KINDS: dict[str, Costly] = {
    "webp-flat-98mp.webp": _kind(lambda scale: flat_webp(16_383, 6_000), "too_much_memory", "ok"),
    "webp-flat-268mp.webp": _kind(lambda scale: flat_webp(16_383, 16_383), "too_many_pixels"),
    "webp-animated-98mp.webp": _kind(lambda scale: animated_webp(16_383, 6_000), "too_much_memory", "ok"),
    "webp-animated-268mp.webp": _kind(lambda scale: animated_webp(16_384, 16_384), "too_many_pixels"),
    "jpeg-1000-scans.jpg": _kind(lambda scale: many_scans(1000), *_SLOW),
    "jpeg-5000-scans.jpg": _kind(lambda scale: many_scans(5000), *_SLOW),
    "jpeg-1000-empty-scans.jpg": _kind(lambda scale: empty_scans(1000), *_SLOW),
    "jpeg-5000-empty-scans.jpg": _kind(lambda scale: empty_scans(5000), *_SLOW),
    "jpeg-claims-100mp.jpg": _kind(lambda scale: claiming_jpeg(10_000, 10_000), "truncated"),
    "jpeg-fill-flood.jpg": _kind(lambda scale: flooded_jpeg(b"\xff" * _times(50_000_000, scale), "head"), "ok"),
    "jpeg-fill-flood-in-scan.jpg": _kind(lambda scale: flooded_jpeg(b"\xff" * _times(50_000_000, scale), "tail"), "ok"),
    "jpeg-comment-flood.jpg": _kind(
        lambda scale: flooded_jpeg(b"\xff\xfe\0\2" * _times(12_500_000, scale), "head"), "ok", "too_slow"
    ),
    "jpeg-app2-flood.jpg": _kind(
        lambda scale: flooded_jpeg(_segment(0xE2, b"ICC_PROFILE\0\1\1") * _times(2_500_000, scale), "head"),
        "ok",
        "too_slow",
    ),
    "jpeg-trailer-flood.jpg": _kind(
        lambda scale: flooded_jpeg(b"\xff\xd8\xff\xd9" * _times(12_500_000, scale), "trailer"), "ok"
    ),
    "bmp-rle-lines.bmp": _kind(lambda scale: rle_bmp(390_000, _times(250, scale), _ONE_LINE), "ok", *_SLOW),
    "bmp-rle-deltas.bmp": _kind(lambda scale: rle_bmp(10_000, 10_000, b"\0\2\xff\xff" * 250), "ok", *_SLOW),
    "gif-comment-flood.gif": _kind(lambda scale: flooded_gif(_COMMENT, _times(10_000_000, scale)), "ok", "too_slow"),
    "gif-application-flood.gif": _kind(
        lambda scale: flooded_gif(_APPLICATION, _times(2_600_000, scale)), "ok", "too_slow"
    ),
    "gif-block-flood.gif": _kind(lambda scale: flooded_gif(_ONE_BYTE, _times(250, scale)), "ok", "too_slow"),
    "gif-claims-4295mp.gif": _kind(lambda scale: large_gif(65_535, 65_535, cover=True), "too_many_pixels"),
    "gif-one-pixel-of-99mp.gif": _kind(
        lambda scale: large_gif(9_900, 10_000, cover=False), "ok", "too_much_memory", "truncated"
    ),
    "gif-claims-99mp.gif": _kind(lambda scale: large_gif(9_900, 10_000, cover=True), "truncated", "too_much_memory"),
    "png-narrow-99mp.png": _kind(lambda scale: flat_png(1, 99_000_000, 8, 0), "too_much_memory", "ok"),
    "png-flat-99mp.png": _kind(lambda scale: flat_png(9_900, 10_000, 16, 6), "too_much_memory", "ok"),
    "png-interlaced-99mp.png": _kind(
        lambda scale: flat_png(9_900, 10_000, 8, 2, interlaced=True), "too_much_memory", "ok"
    ),
    "png-text-2gb.png": _kind(lambda scale: inflating_png(b"zTXt", b"workflow\0\0", 2**31), "ok"),
    "png-international-text-2gb.png": _kind(
        lambda scale: inflating_png(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0", 2**31), "ok"
    ),
    "png-profile-2gb.png": _kind(lambda scale: inflating_png(b"iCCP", b"screen\0\0", 2**31), "ok"),
    "tiff-strips.tif": _kind(lambda scale: many_strips(_times(20_000_000, scale)), "ok", "too_much_memory", *_SLOW),
    "tiff-deflate-2gb.tif": _kind(lambda scale: deflated_tiff(100, 100, 2**31), "ok", "corrupt", "too_much_memory"),
    "tiff-flat-99mp.tif": _kind(lambda scale: deflated_tiff(9_900, 10_000, 99_000_000), "ok", "too_much_memory"),
    "tiff-claims-2gb-strip.tif": _kind(lambda scale: long_strip(), "truncated"),
    "jpeg2000-millions-of-tiles.j2k": _kind(lambda scale: many_tiles(2500, 2000), *_SLOW, "too_much_memory"),
    "jpeg2000-65000-tiles.j2k": _kind(lambda scale: many_tiles(255, 255), *_SLOW, "too_much_memory"),
    "jpegxl-claims-2e18.jxl": _kind(
        lambda scale: claiming_jpeg_xl(), "too_many_pixels", "corrupt", "truncated", "unsupported_format"
    ),
    "avif-claims-4295mp.avif": _kind(lambda scale: _avif(65_535, 65_535), "too_many_pixels", "unsupported_format"),
    "avif-claims-100mp.avif": _kind(
        lambda scale: _avif(10_000, 10_000), "too_much_memory", "corrupt", "truncated", "unsupported_format"
    ),
    "heic-claims-4295mp.heic": _kind(lambda scale: _heic(65_535, 65_535), "too_many_pixels", "unsupported_format"),
    "heic-claims-100mp.heic": _kind(
        lambda scale: _heic(10_000, 10_000), "too_much_memory", "corrupt", "truncated", "unsupported_format"
    ),
    "psd-claims-900mp.psd": _kind(lambda scale: photoshop(30_000, 30_000), "unsupported_format"),
    "icon-120mp.ico": _kind(lambda scale: icon_of_png(), "unsupported_format"),
}
"""Every kind by a name whose first part is its format."""

NEEDS = {"heic": "pillow_heif", "jpegxl": "pillow_jxl"}
"""Modules without which files of a format cannot be made or read."""


def group(name: str) -> str:
    """Return the format in a kind's name."""
    return name.partition("-")[0]

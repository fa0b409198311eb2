"""PNG, GIF, WebP and BMP files built part by part, so that one part can be wrong."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""Adam7: first row, first column, step of rows, step of columns."""


def chunk(name: bytes, body: bytes, wrong: int = 0) -> bytes:
    """Return a PNG's chunk.  wrong: what its checksum is off by."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) ^ wrong)


def header(width: int, height: int, depth: int, colour: int, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png_of(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def scan_lines(values: NDArray[Any], depth: int, interlace: bool = False) -> list[bytes]:
    """Return the unfiltered scan lines of a PNG.  values: (H, W, channels)."""
    parts = [values[r::rs, c::cs] for r, c, rs, cs in PASSES] if interlace else [values]
    lines = []
    for part in parts:
        for row in part if part.size else ():
            samples = row.reshape(-1)
            if depth == 16:
                lines.append(b"\0" + samples.astype(">u2").tobytes())
            else:
                bits = np.unpackbits(samples.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
                lines.append(b"\0" + np.packbits(bits).tobytes())
    return lines


def sub_blocks(data: bytes, size: int = 255) -> bytes:
    """Return data as a GIF's blocks, with their terminator."""
    parts = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def plain_lzw(pixels: bytes, *, end: bool = True) -> bytes:
    """Return 7-bit pixels as LZW codes of 8 bits, with a clear code before the table makes them wider."""
    codes = bytearray()
    for at in range(0, len(pixels), 100):
        codes += b"\x80" + pixels[at : at + 100]
    return bytes(codes) + (b"\x81" if end else b"")


def screen(width: int, height: int, table: bytes = b"") -> bytes:
    """Return a GIF's header.  table: colours, 2 ** n of them, or none."""
    flags = 0x80 | (len(table) // 3).bit_length() - 2 if table else 0
    return b"GIF89a" + struct.pack("<HHBBB", width, height, flags, 0, 0) + table


def picture(
    box: tuple[int, int, int, int], pixels: bytes, table: bytes = b"", *, interlaced: bool = False, end: bool = True
) -> bytes:
    """Return a GIF's image.  box: left, top, width, height."""
    flags = (0x80 | (len(table) // 3).bit_length() - 2 if table else 0) | 0x40 * interlaced
    return b"," + struct.pack("<HHHHB", *box, flags) + table + b"\x07" + sub_blocks(plain_lzw(pixels, end=end))


def control(transparent: int | None) -> bytes:
    """Return a GIF's graphic control extension."""
    return b"!\xf9\x04" + bytes([transparent is not None, 0, 0, transparent or 0, 0])


def riff(*chunks: bytes, more: int = 0) -> bytes:
    """Return a WebP.  more: how many bytes its size says beyond those there."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) + more) + body


def riff_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def extended(width: int, height: int, flags: int = 0) -> bytes:
    """Return a VP8X chunk."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return riff_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sides)


def frame(left: int, top: int, width: int, height: int, chunks: bytes) -> bytes:
    """Return an ANMF chunk."""
    numbers = (left // 2, top // 2, width - 1, height - 1, 40)
    return riff_chunk(b"ANMF", b"".join(n.to_bytes(3, "little") for n in numbers) + b"\0" + chunks)


def webp_chunks(data: bytes) -> dict[bytes, bytes]:
    """Return the contents of a WebP's chunks by their names."""
    found, at = {}, 12
    while at < len(data):
        length = struct.unpack_from("<I", data, at + 4)[0]
        found[data[at : at + 4]] = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return found


def bmp_of(
    width: int, height: int, bits: int, pixels: bytes, *, compression: int = 0, size: int = 40, extra: bytes = b""
) -> bytes:
    """Return a BMP.  size: of its header.  extra: what follows the 40 bytes that all have: masks, then the palette."""
    fields = struct.pack("<IiiHHIIIIII", size, width, height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    begin = 14 + len(fields) + len(extra)
    return b"BM" + struct.pack("<IHHI", begin + len(pixels), 0, 0, begin) + fields + extra + pixels

"""The structure of BMP files (Microsoft's BITMAPFILEHEADER to BITMAPV5HEADER, and OS/2 1.x and 2.x).

Kept: everything up to the end of the pixels. Layouts that Pillow does not read are valid, hence unsupported_mode.
Run-length coded pixels are decoded in a child process, because Pillow does that in slow Python.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.containers.parts import SLACK, corrupt, pillow_bytes, rgb_bytes, truncated
from mdmf_deploy.images.limits import ReadLimits

_FILE_HEADER = 14
_OS2 = 12  # bytes of the header of OS/2 1.x, and how it is recognised
_OS2_2 = 64
_INFO = struct.Struct("<iiHHIIIII")  # width, height, planes, bits, compression, bytes, two resolutions, colours
_RAW, _RLE8, _RLE4, _BITFIELDS = range(4)
# compression -> name, in Windows' headers and in those of OS/2 2.x
_COMPRESSIONS = {4: "JPEG", 5: "PNG", 6: "alpha bit fields", 11: "CMYK", 12: "CMYK of runs", 13: "CMYK of runs"}
_OS2_COMPRESSIONS = {3: "Huffman codes", 4: "24-bit runs"}
_BITS = (1, 4, 8, 16, 24, 32)
_RARE_BITS = {2: "Windows CE writes", 64: "GDI+ writes"}


@dataclass(frozen=True, slots=True)
class _Header:
    """size: of the header in bytes.  colours: how many the palette declares, 0 for all.  entry: bytes of one."""

    size: int
    width: int
    height: int
    bits: int
    compression: int
    colours: int
    entry: int

    @property
    def row(self) -> int:
        """Bytes of a row, in whole 4 bytes."""
        return (self.width * self.bits + 31) // 32 * 4


def parse(data: bytes, limits: ReadLimits) -> Container:
    """Return the structure of the file's image.

    Raises ImageError truncated, corrupt, unsupported_mode or too_many_pixels.
    """
    header = _header(data)
    limits.check_pixels("bmp", header.width, header.height)
    runs = header.compression in (_RLE8, _RLE4)
    begin = _pixels(data, header)
    kept = data
    if not runs:
        end = begin + header.row * header.height
        # The last row need not be filled up.
        if end - header.row + -(-header.width * header.bits // 8) > len(data):
            raise truncated("bmp", f"{len(data) - begin} bytes of its {end - begin} bytes of pixels are there")
        kept = data[:end] + bytes(max(0, end - len(data)))
    width, height = header.width, header.height
    # Pillow collects runs in a list of bytes, and copies it.
    pixels = pillow_bytes(width, height, 4 if header.bits > 8 else 1) + (3 * width * height if runs else 0)
    return Container(
        format="bmp",
        data=kept,
        width=width,
        height=height,
        orientation=1,
        memory=pixels + rgb_bytes(width, height) + len(kept) + SLACK,
        isolated=runs,
    )


def _header(data: bytes) -> _Header:
    """Return a header that makes sense, of a layout that can be read."""
    size = _number(data, _FILE_HEADER)
    if len(data) < _FILE_HEADER + 4 or (size < 256 and len(data) < _FILE_HEADER + size):
        raise truncated("bmp", "in its header")
    at = _FILE_HEADER + 4
    if size == _OS2:
        width, height, _, bits = struct.unpack_from("<HHHH", data, at)
        header = _Header(size, width, height, bits, _RAW, 0, 3)
    elif size in (40, 52, 56, _OS2_2, 108, 124):
        width, height, _, bits, compression, _, _, _, colours = _INFO.unpack_from(data, at)
        # The rows of a negative height are stored from the top down. Pillow looks at its sign, too.
        header = _Header(size, width, abs(height), bits, compression, colours, 4)
    elif 16 <= size < _OS2_2:
        raise _unsupported(f"a header of {size} bytes, which OS/2 2.x writes")
    else:
        raise corrupt("bmp", f"a header of {size} bytes, which no version has")
    if header.width <= 0 or not header.height:
        raise corrupt("bmp", f"its header says {header.width} x {header.height} pixels")
    _refuse_layout(data, header)
    return header


def _refuse_layout(data: bytes, header: _Header) -> None:
    """Raise ImageError unsupported_mode for a valid layout that Pillow does not read, and corrupt for no layout."""
    names = _OS2_COMPRESSIONS if header.size == _OS2_2 else _COMPRESSIONS
    if header.compression in names:
        raise _unsupported(f"pixels as {names[header.compression]}")
    if header.compression > _BITFIELDS:
        raise corrupt("bmp", f"compression {header.compression}, which is none")
    if header.bits in _RARE_BITS:
        raise _unsupported(f"{header.bits} bits per pixel, which {_RARE_BITS[header.bits]}")
    if header.bits not in _BITS:
        raise corrupt("bmp", f"{header.bits} bits per pixel")
    if header.compression in (_RLE8, _RLE4) and header.bits != {_RLE8: 8, _RLE4: 4}[header.compression]:
        raise corrupt("bmp", f"runs of {header.bits} bits per pixel")
    if header.bits <= 8 and header.colours > 65536:
        raise corrupt("bmp", f"a palette of {header.colours} colours")
    if header.compression == _BITFIELDS and _masks(data, header) not in _MASKS.get(header.bits, ()):
        raise _unsupported(f"the bit fields {', '.join(f'{mask:x}' for mask in _masks(data, header))}")


# bits -> masks of red, green, blue, and alpha where it counts, that Pillow reads
_MASKS: dict[int, tuple[tuple[int, ...], ...]] = {
    16: ((0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1F)),
    24: ((0xFF0000, 0xFF00, 0xFF),),
    32: (
        (0xFF0000, 0xFF00, 0xFF, 0),
        (0xFF000000, 0xFF0000, 0xFF00, 0),
        (0xFF000000, 0xFF00, 0xFF, 0),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF000000, 0xFF00, 0xFF, 0xFF0000),
        (0, 0, 0, 0),
    ),
}


def _masks(data: bytes, header: _Header) -> tuple[int, ...]:
    """Return the masks in a header, or behind one of 40 bytes, which has none for alpha."""
    count = 4 if header.bits == 32 else 3
    masks = tuple(_number(data, _FILE_HEADER + 40 + 4 * n) for n in range(count))
    return masks if header.size >= 56 or count == 3 else (*masks[:3], 0)


def _pixels(data: bytes, header: _Header) -> int:
    """Return the offset of the pixels, as Pillow finds it."""
    offset = _number(data, 10)
    behind = _FILE_HEADER + header.size
    palette = header.entry * (header.colours or 1 << header.bits) if header.bits <= 8 else 0
    if not offset:
        return behind + palette + (12 if header.compression == _BITFIELDS and header.size == 40 else 0)
    return offset + (palette if offset == behind else 0)


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _unsupported(what: str) -> ImageError:
    return ImageError("unsupported_mode", f"bmp: it has {what}, which cannot be read; save it with 24 bits per pixel")

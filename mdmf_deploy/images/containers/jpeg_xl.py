"""The structure of JPEG XL files: a codestream, bare or in boxes.

All boxes but those of the codestream are dropped: metadata, and what is needed to get an original JPEG back. The
decoder applies the codestream's own orientation, once. EXIF orientation never counts (ISO/IEC 18181-2, section 9).
Source: ISO/IEC 18181-1 (image header) and ISO/IEC 18181-2 (boxes).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from mdmf_deploy.errors import ImageError, install
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.containers.boxes import boxes
from mdmf_deploy.images.limits import ReadLimits

_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_ALPHA, _SPOT, _BLACK, _FILTER_ARRAY = 0, 2, 4, 5
_HEADER = 2**16
"""Bytes that the image header takes at most, before an ICC profile. Real ones take 50."""


@dataclass(slots=True)
class _Header:
    """The image header. `depth` is in bits a sample, and `extra` counts channels beside the colours."""

    width: int
    height: int
    orientation: int = 1
    depth: int = 8
    extra: int = 0


def parse(data: bytes, limits: ReadLimits) -> Container:
    """Return the structure of the file's picture.

    Raises ImageError: unsupported_format without the extra and for an animation, unsupported_mode for float samples,
    CMYK and premultiplied alpha, truncated, corrupt, too_many_pixels.
    """
    stream = data if data.startswith(b"\xff\x0a") else _codestream(data)
    header = _header(_Bits(stream[2:_HEADER]))
    limits.check_pixels("jpeg_xl", header.width, header.height)
    if find_spec("pillow_jxl") is None:
        raise ImageError(
            "unsupported_format", f"this is a JPEG XL, and no decoder for it is installed; {install('jxl')}"
        )
    sides = header.width, header.height
    return Container(
        format="jpeg_xl",
        data=stream,
        width=sides[header.orientation > 4],
        height=sides[header.orientation < 5],
        orientation=1,
        memory=_memory(header),
        isolated=True,
    )


def _codestream(data: bytes) -> bytes:
    """Return the codestream in the boxes jxlc or jxlp (ISO/IEC 18181-2, sections 9.8 and 9.9)."""
    parts: list[bytes] = []
    whole = cut = False
    for box in boxes(data, 0, len(data), "jpeg_xl"):
        cut = box.end > len(data)
        if box.kind not in (b"jxlc", b"jxlp"):
            continue
        if cut:
            break
        body = data[box.start : box.end]
        if box.kind == b"jxlp":
            if len(body) < 4 or int.from_bytes(body[:4], "big") & 0x7FFFFFFF != len(parts):
                raise ImageError("corrupt", "jpeg_xl: the parts of its codestream are not in order")
            whole = body[0] >= 128
            parts.append(body[4:])
        else:
            whole = True
            parts.append(body)
        if whole:
            break
    if not whole:
        raise ImageError("truncated" if cut or parts else "corrupt", "jpeg_xl: its codestream is not there, or cut")
    stream = b"".join(parts)
    if not stream.startswith(b"\xff\x0a"):
        raise ImageError("corrupt", "jpeg_xl: its codestream does not begin like one")
    return stream


class _Bits:
    """Bits of an image header, lowest first (ISO/IEC 18181-1, annex B)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, bits: int) -> int:
        """Return an unsigned integer of so many bits. Raises ImageError truncated."""
        first, last = self._at >> 3, (self._at + bits + 7) >> 3
        if last > len(self._data):
            raise ImageError("truncated", "jpeg_xl: it ends inside its header")
        value = int.from_bytes(self._data[first:last], "little") >> (self._at & 7)
        self._at += bits
        return value & ((1 << bits) - 1)

    def flag(self) -> bool:
        return bool(self.number(1))

    def choice(self, *ways: tuple[int, int]) -> int:
        """Return a number in one of four ways, each (offset, bits): the field U32."""
        offset, bits = ways[self.number(2)]
        return offset + self.number(bits)

    def size(self) -> tuple[int, int]:
        """Return the width and height of a SizeHeader."""
        small = self.flag()
        height = self._side(small)
        ratio = self.number(3)
        if not ratio:
            return self._side(small), height
        across, down = _RATIOS[ratio - 1]
        return height * across // down, height

    def _side(self, small: bool) -> int:
        if small:
            return 8 * (1 + self.number(5))
        return self.choice((1, 9), (1, 13), (1, 18), (1, 30))

    def preview(self) -> None:
        """Skip a PreviewHeader."""
        ways = ((16, 0), (32, 0), (1, 5), (33, 9)) if self.flag() else ((1, 6), (65, 8), (321, 10), (1345, 12))
        self.choice(*ways)
        if not self.number(3):
            self.choice(*ways)

    def depth(self) -> int:
        """Read the bits of a BitDepth. Raises ImageError unsupported_mode for float samples."""
        if self.flag():
            raise ImageError("unsupported_mode", "jpeg_xl with float samples has no documented 8-bit RGB")
        return self.choice((8, 0), (10, 0), (12, 0), (1, 6))

    def check_channel(self) -> None:
        """Read an ExtraChannelInfo. Raises ImageError unsupported_mode if it makes the colours hard to show."""
        if self.flag():
            return
        kind = self.choice((0, 0), (1, 0), (2, 4), (18, 6))
        self.depth()
        self.choice((0, 0), (3, 0), (4, 0), (1, 3))
        for _ in range(self.choice((0, 0), (0, 4), (16, 5), (48, 10))):
            self.number(8)
        if kind == _ALPHA and self.flag():
            raise ImageError("unsupported_mode", "jpeg_xl with colours premultiplied by alpha is not read")
        if kind == _SPOT:
            self.number(64)
        if kind == _BLACK:
            raise ImageError("unsupported_mode", "jpeg_xl in CMYK is not read")
        if kind == _FILTER_ARRAY:
            self.choice((1, 0), (0, 2), (3, 4), (19, 8))


def _header(bits: _Bits) -> _Header:
    """Read SizeHeader and ImageMetadata up to the extra channels (ISO/IEC 18181-1, annex D)."""
    header = _Header(*bits.size())
    if bits.flag():  # all fields have their default
        return header
    if bits.flag():
        header.orientation = 1 + bits.number(3)
        if bits.flag():
            bits.size()
        if bits.flag():
            bits.preview()
        if bits.flag():
            raise ImageError(
                "unsupported_format",
                "this is an animated JPEG XL, and its decoder returns the last frame instead of the first; "
                "convert the frame that counts",
            )
    header.depth = bits.depth()
    bits.flag()  # whether 16 bits suffice for what is in between
    header.extra = bits.choice((0, 0), (1, 0), (2, 4), (1, 12))
    for _ in range(header.extra):
        bits.check_channel()
    return header


def _memory(header: _Header) -> int:
    """Return an upper bound of the bytes that decoding takes.

    Measured: 8 bytes a pixel, 19 with 16 bits a sample, and 20 more with transparency.
    """
    per_pixel = (28 if header.depth > 8 else 20) + 16 * header.extra
    return (8 << 20) + header.width * header.height * per_pixel

"""The frame of coded pictures, AV1 and HEVC: whether their units are whole, and the size that AV1 gives.

Sources: AV1 Bitstream and Decoding Process, sections 5.3 and 5.5. ISO/IEC 14496-15, sections 8.3.3 (HEVC), and ITU-T
H.265, section 7.3.1.2.
"""

from __future__ import annotations

from collections.abc import Iterator

from mdmf_deploy.errors import ImageError

# No unit of HEVC holds these (H.265, section 7.4.2), but parts of a download that never came do.
_ILLEGAL = (b"\0\0\0", b"\0\0\1", b"\0\0\2")
_NEVER_CAME = bytes(64)
_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6


def check_av1(data: bytes, size: tuple[int, int]) -> None:
    """Check that a coded picture is whole and has this width and height. Libavif would scale it without a word.

    Raises ImageError: truncated, or corrupt.
    """
    if data.endswith(_NEVER_CAME):
        raise ImageError("truncated", "avif: its coded picture ends in zeros, as if a part of a download never came")
    sizes, frames = set(), 0
    for kind, start, end in _units(data):
        if kind == _SEQUENCE_HEADER:
            sizes.add(_av1_size(_Bits(data[start:end])))
        frames += kind in (_FRAME_HEADER, _FRAME)
    if sizes and sizes != {size}:
        width, height = max(sizes)
        raise ImageError("corrupt", f"avif: it announces {size[0]} x {size[1]} pixels and holds {width} x {height}")
    if not sizes or not frames:
        raise ImageError("truncated", "avif: its coded picture is not there")


def check_hevc(data: bytes, configuration: bytes) -> None:
    """Check that a coded picture is whole. Libheif checks its size itself.

    configuration: the property hvcC, which says how many bytes give a unit's length.
    Raises ImageError: truncated, or corrupt.
    """
    if len(configuration) < 23:
        raise ImageError("corrupt", "heif: its decoder configuration is cut")
    wide = (configuration[21] & 3) + 1
    at = slices = 0
    while at < len(data):
        start = at + wide
        at = start + int.from_bytes(data[at:start], "big")
        if at > len(data):
            raise ImageError("truncated", "heif: its coded picture ends early")
        if any(data.find(illegal, start, at) >= 0 for illegal in _ILLEGAL):
            raise ImageError("corrupt", "heif: its coded picture holds bytes that no encoder writes, such as zeros")
        slices += start < at and data[start] >> 1 & 0x3F < 32
    if not slices:
        raise ImageError("truncated", "heif: its coded picture is not there")


def _units(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the type, start and end of each open bitstream unit."""
    at = 0
    while at < len(data):
        head = data[at]
        if head & 0x81:
            raise ImageError("corrupt", "avif: its coded picture makes no sense")
        at += 2 if head & 4 else 1
        size = len(data) - at
        if head & 2:
            size = shift = 0
            while True:
                if at >= len(data) or shift > 28:
                    raise ImageError("truncated", "avif: its coded picture ends early")
                size |= (data[at] & 0x7F) << shift
                shift += 7
                at += 1
                if data[at - 1] < 0x80:
                    break
        if at + size > len(data) or size < 0:
            raise ImageError("truncated", "avif: its coded picture ends early")
        yield head >> 3 & 15, at, at + size
        at += size


class _Bits:
    """Bits of a sequence header, highest first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data[:1024], "big")
        self._left = 8 * min(len(data), 1024)

    def number(self, bits: int) -> int:
        """Return an unsigned integer of so many bits. Raises ImageError corrupt."""
        self._left -= bits
        if self._left < 0:
            raise ImageError("corrupt", "avif: its sequence header is cut")
        return self._value >> self._left & ((1 << bits) - 1)

    def skip_variable(self) -> None:
        """Skip a number of the kind uvlc."""
        zeros = 0
        while not self.number(1):
            zeros += 1
        self.number(zeros if zeros < 32 else 0)


def _av1_size(bits: _Bits) -> tuple[int, int]:
    """Return the largest width and height of a frame (section 5.5.1)."""
    bits.number(4)
    if bits.number(1):  # a still picture with a short header
        bits.number(5)
    else:
        _skip_operating_points(bits)
    across, down = bits.number(4) + 1, bits.number(4) + 1
    return bits.number(across) + 1, bits.number(down) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay = 0
    if bits.number(1):  # timing
        bits.number(64)
        if bits.number(1):
            bits.skip_variable()
        if bits.number(1):  # a model of the decoder
            delay = bits.number(5) + 1
            bits.number(42)
    display = bits.number(1)
    for _ in range(bits.number(5) + 1):
        bits.number(12)
        if bits.number(5) > 7:
            bits.number(1)
        if delay and bits.number(1):
            bits.number(2 * delay + 1)
        if display and bits.number(1):
            bits.number(4)

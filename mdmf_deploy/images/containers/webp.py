"""The structure of WebP files (RFC 9649, section 2).

Kept: a still file of the first picture, that is a VP8 or VP8L chunk, and the ALPH chunk of a VP8. A frame of an
animation lies where Container.offset says. The sizes that the pixels and the containers around them declare must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.containers.exif import orientation_in
from mdmf_deploy.images.containers.parts import MOST_PARTS, SLACK, corrupt, rgb_bytes, too_many_parts, truncated
from mdmf_deploy.images.limits import ReadLimits

_ANIMATION, _ALPHA = 0x02, 0x10  # flags of VP8X
_PICTURES = (b"VP8 ", b"VP8L")
_Chunk = tuple[bytes, int, int]
"""A chunk's type, and where its content begins and ends. The end lies behind the file's if the chunk is cut."""


def parse(data: bytes, limits: ReadLimits) -> Container:
    """Return the structure of the file's first image.

    Raises ImageError truncated, corrupt or too_many_pixels; too_slow for millions of chunks.
    """
    parts = iter(range(MOST_PARTS))
    end = 8 + int.from_bytes(data[4:8], "little")
    chunks = _chunks(data, 12, end, parts)
    first = next(chunks, None)
    if first is None:
        raise truncated("webp", "in its header")
    name, at, stop = first
    if name in _PICTURES:
        return _container(_still(data, first))
    if name != b"VP8X" or stop - at < 10:
        raise corrupt("webp", f"a first chunk {name!r}")
    if at + 10 > len(data):
        raise truncated("webp", "in its header")
    canvas = _three(data, at + 4) + 1, _three(data, at + 7) + 1
    limits.check_pixels("webp", *canvas)
    animated = bool(data[at] & _ANIMATION)
    found: dict[bytes, _Chunk] = {}
    for chunk in chunks:
        kind = b"picture" if chunk[0] in ((b"ANMF",) if animated else _PICTURES) else chunk[0]
        # Only an ALPH before the picture belongs to it.
        if kind in (b"picture", b"EXIF") or (kind == b"ALPH" and b"picture" not in found):
            found.setdefault(kind, chunk)
    if b"picture" not in found:
        raise truncated("webp", "before its pixels") if end > len(data) else corrupt("webp", "it has no picture")
    exif = data[slice(*found[b"EXIF"][1:])] if b"EXIF" in found else b""
    if animated:
        return _frame(data, canvas, found[b"picture"], exif, parts)
    return _container(_still(data, found[b"picture"], found.get(b"ALPH"), canvas), exif)


def _chunks(data: bytes, at: int, end: int, parts: Iterator[int]) -> Iterator[_Chunk]:
    """Yield the chunks that begin between two bytes (section 2.3)."""
    end = min(end, len(data))
    for _ in parts:
        if at + 8 > end:
            return
        stop = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], at + 8, stop if stop <= end else max(stop, len(data) + 1)
        at = stop + (stop - at) % 2
    raise too_many_parts("webp")


def _frame(data: bytes, canvas: tuple[int, int], frame: _Chunk, exif: bytes, parts: Iterator[int]) -> Container:
    """Return the first frame of an animation (section 2.7.1.2)."""
    _, at, stop = frame
    if at + 16 > min(stop, len(data)):
        raise truncated("webp", "in its first frame")
    offset = 2 * _three(data, at), 2 * _three(data, at + 3)
    size = _three(data, at + 6) + 1, _three(data, at + 9) + 1
    if offset[0] + size[0] > canvas[0] or offset[1] + size[1] > canvas[1]:
        raise corrupt("webp", "its first frame reaches over the canvas")
    alpha = None
    for chunk in _chunks(data, at + 16, stop, parts):
        if chunk[0] in _PICTURES:
            return _container(_still(data, chunk, alpha, size), exif, canvas, offset)
        if chunk[0] == b"ALPH" and alpha is None:
            alpha = chunk
    raise truncated("webp", "in its first frame") if stop > len(data) else corrupt("webp", "a frame without a picture")


@dataclass(frozen=True, slots=True)
class _Still:
    """A picture as a file of its own."""

    data: bytes
    width: int
    height: int


def _still(data: bytes, picture: _Chunk, alpha: _Chunk | None = None, size: tuple[int, int] | None = None) -> _Still:
    """Return a picture with its alpha.  size: what the parts around it declare, if they do."""
    name, at, stop = picture
    if stop > len(data):
        raise truncated("webp", "in its pixels")
    width, height = _size(name, data[at : at + 10], stop - at)
    if size is not None and size != (width, height):
        raise corrupt("webp", f"{size[0]} x {size[1]} pixels in its header, {width} x {height} in its data")
    if size is None and stop + (stop - at) % 2 == len(data) == 8 + int.from_bytes(data[4:8], "little"):
        return _Still(data, width, height)
    body: tuple[bytes | memoryview, ...] = _chunk(name, memoryview(data)[at:stop])
    if alpha is not None and name == b"VP8 ":
        extended = bytes([_ALPHA, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = (*_chunk(b"VP8X", extended), *_chunk(b"ALPH", memoryview(data)[alpha[1] : alpha[2]]), *body)
    total = 4 + sum(map(len, body))
    return _Still(b"".join((b"RIFF", total.to_bytes(4, "little"), b"WEBP", *body)), width, height)


def _container(
    still: _Still, exif: bytes = b"", canvas: tuple[int, int] | None = None, offset: tuple[int, int] | None = None
) -> Container:
    width, height = canvas or (still.width, still.height)
    pixels = still.width * still.height
    return Container(
        format="webp",
        data=still.data,
        width=width,
        height=height,
        orientation=orientation_in(exif),
        # libwebp holds two canvases of 4 bytes a pixel, and Pillow two copies of the picture. Alpha takes one more.
        # Both copy the file.
        memory=max(17 * pixels, 12 * pixels + rgb_bytes(width, height)) + 3 * len(still.data) + SLACK,
        offset=None if (width, height) == (still.width, still.height) else offset,
    )


def _size(name: bytes, head: bytes, length: int) -> tuple[int, int]:
    """Return the width and height in the header of a VP8 (RFC 6386, section 9.1) or a VP8L (RFC 9649, section 3.4).

    head: the first 10 bytes of the chunk's content, whose length is given.
    """
    if length < (5 if name == b"VP8L" else 10):
        raise truncated("webp", "in the header of its pixels")
    if name == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        if head[0] != 0x2F or bits >> 29:
            raise corrupt("webp", "no header of lossless pixels")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    # Bits of the first byte: 0 for a key frame, a profile of 0 to 3, and 1 for a frame to show.
    if head[0] & 0b11001 != 0b10000 or head[3:6] != b"\x9d\x01\x2a" or not width or not height:
        raise corrupt("webp", "no header of lossy pixels")
    if 10 + (_three(head, 0) >> 5) > length:
        raise truncated("webp", "in its pixels")
    return width, height


def _three(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _chunk(name: bytes, body: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    return name, len(body).to_bytes(4, "little"), body, bytes(len(body) % 2)

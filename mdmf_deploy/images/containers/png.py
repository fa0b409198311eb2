"""The structure of PNG files (W3C, Portable Network Graphics, third edition).

Kept: IHDR, PLTE and tRNS, and all IDAT chunks joined to one. The rest is dropped unread, whatever its length or its
checksum: texts, ICC profiles, frames of an animation. Only an eXIf chunk is looked at, for the orientation.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.containers.exif import orientation_in
from mdmf_deploy.images.containers.parts import (
    MOST_PARTS,
    SLACK,
    corrupt,
    pillow_bytes,
    rgb_bytes,
    too_many_parts,
    truncated,
)
from mdmf_deploy.images.limits import ReadLimits

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD = struct.Struct(">I4s")
_IHDR = struct.Struct(">IIBBBBB")
# colour type -> bit depths (section 11.2.1)
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_GREY, _COLOUR, _PALETTE = 0, 2, 3

_MOST_JOINED_BY_PILLOW = 2**16  # IDAT chunks, which Pillow joins in slow Python


def _chunk(name: bytes, body: bytes) -> bytes:
    return _HEAD.pack(len(body), name) + body + zlib.crc32(name + body).to_bytes(4, "big")


_END = _chunk(b"IEND", b"")


@dataclass(slots=True)
class _Kept:
    """What a walk over the chunks has found."""

    header: bytes = b""
    colour: int = 0
    palette: bytes = b""
    transparency: bytes = b""
    exif: bytes = b""
    pixels: list[memoryview] = field(default_factory=list)
    ended: bool = False


def parse(data: bytes, limits: ReadLimits) -> Container:
    """Return the structure of the file's first image.

    Raises ImageError truncated or corrupt; unsupported_mode for Apple's variant; too_slow for millions of chunks.
    """
    kept = _walk(data)
    if not kept.pixels:
        if kept.ended:
            raise corrupt("png", "no IDAT chunk, so it has no pixels")
        raise truncated("png", "before its pixels")
    if kept.colour == _PALETTE and not kept.palette:
        raise corrupt("png", "its pixels need a palette, and it has none")
    width, height, depth, colour, _, _, _ = _IHDR.unpack(kept.header)
    joined = _joined(data, kept)
    pixel = (2 if depth == 16 else 1) if colour in (_GREY, _PALETTE) else 4
    return Container(
        format="png",
        data=joined,
        width=width,
        height=height,
        orientation=orientation_in(kept.exif),
        memory=pillow_bytes(width, height, pixel) + rgb_bytes(width, height) + len(joined) + SLACK,
    )


def _joined(data: bytes, kept: _Kept) -> bytes:
    """Return a file of the kept chunks. That is the file itself, which saves a copy, if there are no others."""
    size = sum(map(len, kept.pixels))
    head = [_SIGNATURE, _chunk(b"IHDR", kept.header)]
    if kept.palette:
        head.append(_chunk(b"PLTE", kept.palette))
    if kept.transparency:
        head.append(_chunk(b"tRNS", kept.transparency))
    whole = sum(map(len, head)) + size + 12 * len(kept.pixels) + len(_END) == len(data) and kept.ended
    if whole and len(kept.pixels) <= _MOST_JOINED_BY_PILLOW:
        return data
    # No decoder checks the checksum of IDAT, because zlib has one of its own.
    return b"".join((*head, _HEAD.pack(size, b"IDAT"), *kept.pixels, bytes(4), _END))


def _walk(data: bytes) -> _Kept:
    """Return what the pixels depend on, up to the end of the image or of the file."""
    kept, view, size = _Kept(), memoryview(data), len(data)
    at = len(_SIGNATURE)
    for _ in range(MOST_PARTS):
        if at + 8 > size:
            return kept
        length, name = _HEAD.unpack_from(data, at)
        begin, at = at + 8, at + 12 + length
        if name == b"IDAT":
            if not kept.header:
                raise corrupt("png", "its pixels precede its header")
            kept.pixels.append(view[begin : begin + length])
        elif name == b"IEND":
            kept.ended = True
            return kept
        elif name in _READERS:
            if at > size:
                return kept
            _READERS[name](kept, data[begin : begin + length], zlib.crc32(view[begin - 4 : at - 4]) == _crc(data, at))
        elif not name.isalpha():
            # Nothing behind a damaged length can be found.
            if not kept.pixels:
                raise corrupt("png", f"a chunk of type {name!r}")
            return kept
        elif not kept.header:
            _refuse_first(name)
    raise too_many_parts("png")


def _refuse_first(name: bytes) -> None:
    if name == b"CgBI":
        raise ImageError(
            "unsupported_mode",
            "png: this is the variant that Apple packs into apps (CgBI); convert it with pngcrush -revert-iphone-"
            "optimizations",
        )
    raise corrupt("png", f"it begins with a chunk of type {name!r}, not IHDR")


def _header(kept: _Kept, body: bytes, whole: bool) -> None:
    if kept.header:
        raise corrupt("png", "it has two headers")
    if not whole or len(body) != _IHDR.size:
        raise corrupt("png", "its header has a wrong checksum or length")
    width, height, depth, colour, compression, filtering, interlace = _IHDR.unpack(body)
    if not (0 < width < 2**31 and 0 < height < 2**31):
        raise corrupt("png", f"its header says {width} x {height} pixels")
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise corrupt("png", f"its header says depth {depth}, colour type {colour}, which is no layout")
    kept.header, kept.colour = body, colour


def _palette(kept: _Kept, body: bytes, whole: bool) -> None:
    # The palette of another colour type is a suggestion for poor displays.
    if kept.colour != _PALETTE or kept.pixels:
        return
    if kept.palette or not whole or len(body) % 3 or not 0 < len(body) <= 768:
        raise corrupt("png", "its palette has a wrong checksum or length, or there are two")
    kept.palette = body


def _transparency(kept: _Kept, body: bytes, whole: bool) -> None:
    """Keep the alphas of a palette, or a colour key. A bad one is left out, as in libpng: the pixels are there."""
    if kept.colour == _PALETTE:
        fits = 0 < len(body) <= len(kept.palette) // 3
    else:
        fits = len(body) == {_GREY: 2, _COLOUR: 6}.get(kept.colour)
    if whole and fits and not kept.pixels and not kept.transparency:
        kept.transparency = body


def _exif(kept: _Kept, body: bytes, whole: bool) -> None:
    if whole and not kept.exif:
        kept.exif = body


_READERS = {b"IHDR": _header, b"PLTE": _palette, b"tRNS": _transparency, b"eXIf": _exif}


def _crc(data: bytes, end: int) -> int:
    return int.from_bytes(data[end - 4 : end], "big")

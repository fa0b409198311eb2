"""The structure of GIF files (CompuServe, GIF89a specification).

Kept: the first image with its colours, and the transparent index of the last graphic control before it. Its frame
becomes the whole screen of the kept file, and Container.offset says where it lies. Like Pillow and Chrome, a frame that
reaches over the screen's edges enlarges the screen.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from mdmf_deploy.images.containers import Container
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

_SCREEN = 13  # bytes of the signature and the screen's descriptor
_IMAGE = struct.Struct("<HHHHB")
_INTRODUCER = re.compile(rb"[!,;]")
_CONTROL = 0xF9


def parse(data: bytes, limits: ReadLimits) -> Container:
    """Return the structure of the file's first image.

    Raises ImageError truncated or corrupt; too_slow for millions of blocks.
    """
    if len(data) < _SCREEN:
        raise truncated("gif", "in its header")
    parts = iter(range(MOST_PARTS))
    colours = _table(data, _SCREEN, data[10])
    control = b""
    at = _SCREEN + len(colours)
    for _ in parts:
        # Some writers leave bytes between the blocks, and every reader skips them.
        introducer = _INTRODUCER.search(data, at)
        if introducer is None:
            raise truncated("gif", "before its first image")
        at = introducer.end()
        if introducer[0] == b";":
            raise corrupt("gif", "it has no image")
        if introducer[0] == b",":
            return _image(data, at, colours, control, parts)
        if data[at : at + 1] == bytes([_CONTROL]) and data[at + 1 : at + 2] >= b"\x04":
            control = data[at + 2 : at + 6]
        _, at = _blocks(data, at + 1, parts)
    raise too_many_parts("gif")


def _image(data: bytes, at: int, colours: bytes, control: bytes, parts: Iterator[int]) -> Container:
    """Return the image whose descriptor begins at a byte."""
    if at + _IMAGE.size > len(data):
        raise truncated("gif", "before its first image")
    left, top, width, height, flags = _IMAGE.unpack_from(data, at)
    if not width or not height:
        raise corrupt("gif", f"its first image has {width} x {height} pixels")
    at += _IMAGE.size
    # A local table of greys beside a global one of colours would mislead Pillow, so only the one in use is kept.
    local = _table(data, at, flags)
    colours, at = local or colours, at + len(local)
    blocks, _ = _blocks(data, at + 1, parts)
    if not blocks:
        raise truncated("gif", "before the pixels of its first image")
    transparent = control[3:] if control and control[0] & 1 else b""
    size_of_table = 0x80 | (len(colours) // 3).bit_length() - 2 if colours else 0
    kept = b"".join(
        (
            b"GIF89a",
            struct.pack("<HHBBB", width, height, size_of_table, 0, 0),
            colours,
            b"!\xf9\x04\x01\0\0" + transparent + b"\0" if transparent else b"",
            b"," + _IMAGE.pack(0, 0, width, height, flags & 0x40),
            data[at : at + 1],
            blocks,
            b"\0;",
        )
    )
    screen = struct.unpack_from("<HH", data, 6)
    canvas = max(screen[0], left + width), max(screen[1], top + height)
    return Container(
        format="gif",
        data=kept,
        width=canvas[0],
        height=canvas[1],
        orientation=1,
        memory=pillow_bytes(width, height, 1) + rgb_bytes(*canvas) + len(kept) + SLACK,
        offset=None if canvas == (width, height) else (left, top),
    )


def _table(data: bytes, at: int, flags: int) -> bytes:
    """Return the colour table that begins at a byte, if the flags before it announce one."""
    if not flags & 0x80:
        return b""
    end = at + (6 << (flags & 7))
    if end > len(data):
        raise truncated("gif", "in its colours")
    return data[at:end]


def _blocks(data: bytes, at: int, parts: Iterator[int]) -> tuple[bytes, int]:
    """Return the data blocks that begin at a byte, without their terminator, and the offset behind them.

    If the file ends in a block, that one is shortened.
    """
    begin = at
    for _ in parts:
        if at >= len(data):
            return data[begin:], at
        # Most writers fill their blocks, so that many can be skipped at once.
        lengths = data[at : at + 256 * 64 : 256]
        full = min(len(lengths) - len(lengths.lstrip(b"\xff")), (len(data) - at) // 256)
        if full:
            at += 256 * full
            continue
        length = data[at]
        if not length:
            return data[begin:at], at + 1
        if at + 1 + length > len(data):
            rest = data[at + 1 :]
            return data[begin:at] + bytes([len(rest)] if rest else []) + rest, len(data)
        at += length + 1
    raise too_many_parts("gif")

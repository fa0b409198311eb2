"""The first picture of an image sequence: the first sample of its first track, as an item (ISO/IEC 14496-12)."""

from __future__ import annotations

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers.boxes import Box, Fields, children
from mdmf_deploy.images.containers.heif_items import Item, Property

_VISUAL_ENTRY = 78
"""Bytes of a visual sample entry before its boxes (section 12.1.3)."""


def first_sample(data: bytes, moov: Box) -> Item:
    """Return the first sample of the first track of pictures. Its transparency, which is another track, is not read.

    Raises ImageError: corrupt if there is none, truncated if its bytes are not there.
    """
    for track in children(data, moov, "heif"):
        if track.kind != b"trak":
            continue
        media = _child(data, track, b"mdia")
        handler = Fields(data, _child(data, media, b"hdlr"), "heif")
        handler.bytes(8)
        if handler.bytes(4) in (b"pict", b"vide"):
            return _item(data, _child(data, _child(data, media, b"minf"), b"stbl"))
    raise ImageError("corrupt", "heif: its sequence has no pictures")


def _child(data: bytes, parent: Box, kind: bytes) -> Box:
    for box in children(data, parent, "heif"):
        if box.kind == kind:
            return box
    raise ImageError("corrupt", f"heif: its sequence lacks the box {kind.decode()}")


def _item(data: bytes, table: Box) -> Item:
    entry = next(children(data, _child(data, table, b"stsd"), "heif", skip=8), None)
    if entry is None:
        raise ImageError("corrupt", "heif: its sequence names no codec")
    fields = Fields(data, entry, "heif")
    fields.bytes(24)
    width, height = fields.numbers(2, 2)
    properties = [Property(b"ispe", bytes(4) + width.to_bytes(4, "big") + height.to_bytes(4, "big"))]
    for box in children(data, entry, "heif", skip=_VISUAL_ENTRY):
        if box.kind in (b"av1C", b"hvcC", b"colr", b"clap"):
            properties.append(Property(box.kind, data[box.start : box.end], box.kind != b"colr"))
    sizes = Fields(data, _child(data, table, b"stsz"), "heif")
    sizes.bytes(4)
    size, count = sizes.numbers(4, 2)
    if not count:
        raise ImageError("corrupt", "heif: its sequence has no samples")
    size = size or sizes.number(4)
    start = _first_chunk(data, table)
    if start + size > len(data):
        raise ImageError("truncated", "heif: it ends before the data of its picture do")
    return Item(1, entry.kind, properties, data[start : start + size])


def _first_chunk(data: bytes, table: Box) -> int:
    """Return the offset of the first chunk of samples."""
    for box in children(data, table, "heif"):
        if box.kind in (b"stco", b"co64"):
            fields = Fields(data, box, "heif")
            fields.bytes(4)
            if fields.number(4):
                return fields.number(4 if box.kind == b"stco" else 8)
    raise ImageError("corrupt", "heif: its sequence does not say where its samples lie")

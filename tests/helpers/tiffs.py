"""TIFF files written field by field: any tag, both byte orders, classic and BigTIFF."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray
from PIL import Image

# Field type -> struct's letter.
LETTERS = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 12: "d", 13: "I", 16: "Q"}
START = 16  # offset of the first byte of pixels
Tags = Mapping[int, tuple[int, Sequence[int]]]


def tiff_file(
    pages: Sequence[Tags], pixels: bytes = b"", order: str = "<", big: bool = False, loop: bool = False
) -> bytes:
    """Return a TIFF with one directory for each page, behind the pixels, which begin at START.

    Tags: tag -> (field type, values). Tag 330 names pages by number, and pages named so are not in the chain.
    Larger values of it are offsets.
    loop: whether the last directory points at the first.
    """
    count, pointer, inline = ("Q", "Q", 8) if big else ("H", "I", 4)
    inner = {number for page in pages for number in page.get(330, (4, ()))[1] if number < len(pages)}
    body = bytearray(START) + pixels + bytes(len(pixels) % 2)
    places: dict[int, int] = {}
    # Backwards, so that every directory knows where the next one is.
    chain = [n for n in range(len(pages)) if n not in inner]
    following = dict(zip(chain, [*chain[1:], None], strict=True))
    for number in [*sorted(inner), *reversed(chain)]:
        records = b""
        for tag, (kind, values) in sorted(pages[number].items()):
            numbers = [places.get(value, value) for value in values] if tag == 330 else list(values)
            packed = struct.pack(f"{order}{len(numbers)}{LETTERS[kind]}", *numbers)
            if len(packed) > inline:
                at = len(body)
                body += packed + bytes(len(packed) % 2)
                packed = struct.pack(order + pointer, at)
            records += struct.pack(order + "HH" + pointer, tag, kind, len(numbers)) + packed.ljust(inline, b"\0")
        places[number] = len(body)
        after = following.get(number)
        next = places[number] if loop and after is None else 0 if after is None else places[after]
        body += struct.pack(order + count, len(pages[number])) + records + struct.pack(order + pointer, next)
    magic = b"II" if order == "<" else b"MM"
    head = struct.pack(order + "HHHQ", 43, 8, 0, places[0]) if big else struct.pack(order + "HI", 42, places[0])
    body[: 2 + len(head)] = magic + head
    return bytes(body)


def tags(pixels: NDArray[Any]) -> dict[int, tuple[int, Sequence[int]]]:
    """Return the tags of an uncompressed grey or RGB image in one strip at START, with its pixels' own type."""
    height, width, *rest = pixels.shape
    samples = rest[0] if rest else 1
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[pixels.dtype.kind]
    return {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [8 * pixels.itemsize] * samples),
        259: (3, [1]),
        262: (3, [1 if samples == 1 else 2]),
        273: (4, [START]),
        277: (3, [samples]),
        278: (3, [height]),
        279: (4, [pixels.nbytes]),
        339: (3, [kind] * samples),
    }


@lru_cache
def slow_tiff(side: int = 8000) -> bytes:
    """Return a TIFF that takes minutes to decode: many tiles, all of which are the same JPEG with many tables."""
    tile = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(tile, "JPEG", subsampling=0)
    tables = 5000 * (b"\xff\xdb\x00\x43\x00" + bytes([1] * 64))
    jpeg = tile.getvalue()[:2] + tables + tile.getvalue()[2:]
    number = (side // 16) ** 2
    page = {
        256: (3, [side]),
        257: (3, [side]),
        258: (3, [8, 8, 8]),
        259: (3, [7]),
        262: (3, [6]),
        277: (3, [3]),
        322: (3, [16]),
        323: (3, [16]),
        324: (4, [START] * number),
        325: (4, [len(jpeg)] * number),
        530: (3, [1, 1]),
    }
    return tiff_file([page], jpeg)

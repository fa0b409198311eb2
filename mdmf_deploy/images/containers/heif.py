"""The structure of HEIF and AVIF files, which share their frame and differ in their codec.

The picture is the primary item, or the first sample of a sequence that has no items. It is one coded picture or a grid
of them, HEVC ("heif") or AV1 ("avif"). The codec decides which of the two the file is, not its brands.
It is turned by its own properties (clap, irot, imir), once. EXIF orientation never counts: ISO/IEC 23000-22 (MIAF),
section 7.3.8, has it repeat what the properties say. ICC profiles are dropped like the other metadata.
Sources: ISO/IEC 23008-12 (HEIF), ISO/IEC 23000-22 (MIAF), the AV1 Image File Format.
"""

from __future__ import annotations

from importlib.util import find_spec

from mdmf_deploy.errors import ImageError, install
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.containers.boxes import Box, boxes, name_of
from mdmf_deploy.images.containers.heif_coded import check_av1, check_hevc
from mdmf_deploy.images.containers.heif_items import KEPT, MOST_ITEMS, Item, Items, Property, written
from mdmf_deploy.images.containers.heif_tracks import first_sample
from mdmf_deploy.images.limits import ReadLimits

_CODECS = {b"av01": "avif", b"hvc1": "heif", b"hev1": "heif"}
_CONFIGURATION = {"avif": b"av1C", "heif": b"hvcC"}
_ALPHA = (
    b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha",
    b"urn:mpeg:hevc:2015:auxid:1",
    b"urn:mpeg:avc:2015:auxid:1",
)
_NAMES = {
    b"jpeg": "JPEG",
    b"j2k1": "JPEG 2000",
    b"avc1": "H.264",
    b"vvc1": "VVC",
    b"unci": "uncompressed samples",
    b"iovl": "an overlay of pictures",
    b"mask": "a mask",
}
# (a, b, c, d) of x' = ax + by, y' = cx + dy, with y downwards -> EXIF orientation
_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, -1, 1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, 1, -1, 0): 8,
}


def parse(data: bytes, limits: ReadLimits) -> Container:
    """Return the structure of the file's picture.

    Raises ImageError: unsupported_format for another codec or a missing extra, truncated, corrupt, too_many_pixels.
    """
    items = _items(data)
    format = _format(items)
    width, height = _size(items[0])
    limits.check_pixels(format, width, height)
    picture = items[0]
    if picture.kind == b"grid":
        _check_grid(items, width, height)
    tiles = {tile.number: tile for tile in items if tile.kind != b"grid"}
    largest = max((_size(tile) for tile in tiles.values()), key=lambda size: size[0] * size[1])
    limits.check_pixels(f"{format} tile", *largest)
    _check_reader(format)
    for item in tiles.values():
        if format == "avif":
            check_av1(item.data, _size(item))
        else:
            check_hevc(item.data, item.find(b"hvcC") or b"")
    for item in items:
        item.properties = [found for found in item.properties if _kept(found)]
    orientation, window = _transform(picture, width, height)
    if format == "heif":
        # libheif applies these properties itself, in their order.
        sides = window[2] - window[0], window[3] - window[1]
        width, height, orientation = *(sides if orientation < 5 else sides[::-1]), 1
    return Container(
        format=format,
        data=written(items, b"avif" if format == "avif" else b"heic"),
        width=width,
        height=height,
        orientation=orientation,
        memory=_memory(format, items, largest),
        isolated=True,
    )


def clean_aperture(data: bytes) -> tuple[int, int, int, int] | None:
    """Return the part of the stored picture that counts, (left, top, right, bottom), or None for all of it.

    data: of a Container that `parse` returned.
    """
    picture = _items(data)[0]
    width, height = _size(picture)
    window = _transform(picture, width, height)[1]
    return None if window == (0, 0, width, height) else window


def _items(data: bytes) -> list[Item]:
    """Return the picture and the items that it needs, itself first."""
    moov: Box | None = None
    for box in boxes(data, 0, len(data), "heif"):
        if box.kind == b"meta":
            items = Items(data, box)
            if items.primary is not None:
                return _needed(items, items.primary)
        elif box.kind == b"moov":
            moov = box
    if moov is None:
        raise ImageError(
            "truncated" if _cut(data) else "corrupt", "heif: it holds neither a primary picture nor a sequence"
        )
    return [first_sample(data, moov)]


def _cut(data: bytes) -> bool:
    return any(box.end > len(data) for box in boxes(data, 0, len(data), "heif"))


def _needed(items: Items, primary: int) -> list[Item]:
    """Return an item and all that its pixels depend on: tiles and transparency."""
    picture = _flat(items, primary)
    needed = {picture.number: picture}
    waiting = [picture]
    while waiting:
        item = waiting.pop()
        masks = [_flat(items, number) for number in item.masks[:16]]
        alpha = [mask for mask in masks if (mask.find(b"auxC") or b"")[4:].partition(b"\0")[0] in _ALPHA][:1]
        item.masks = [mask.number for mask in alpha]
        if item.kind != b"grid":
            item.tiles = []
        elif item is not picture and item.number not in picture.masks:
            raise ImageError("unsupported_format", "heif: it is a grid of grids; convert it to a JPEG")
        new = alpha + [items.item(number) for number in dict.fromkeys(item.tiles) if number not in needed]
        if len(needed) + len(new) > MOST_ITEMS:
            raise ImageError("corrupt", f"heif: its picture needs more than {MOST_ITEMS} items")
        for found in new:
            if found.number not in needed:
                needed[found.number] = found
                waiting.append(found)
    return list(needed.values())


def _flat(items: Items, number: int) -> Item:
    """Return an item. An identity ("iden") is the item that it stands for, with the transforms of both."""
    item = items.item(number)
    transforms: list[Property] = []
    for _ in range(8):
        if item.kind != b"iden":
            item.properties += transforms
            if len(item.properties) > 255:
                break
            return item
        transforms = [found for found in item.properties if found.kind in (b"irot", b"imir", b"clap")] + transforms
        if len(item.tiles) != 1:
            break
        item = items.item(item.tiles[0])
    raise ImageError("corrupt", f"heif: item {number} stands for no picture")


def _format(items: list[Item]) -> str:
    """Return the format by the codec that all items share."""
    codecs = {item.kind for item in items if item.kind != b"grid"}
    for kind in codecs:
        if kind not in _CODECS:
            name = _NAMES.get(kind, f"the codec {name_of(kind)}")
            raise ImageError(
                "unsupported_format",
                f"this is a HEIF image of {name} ({name_of(kind)}), and only HEVC and AV1 are read; "
                "convert it to a JPEG",
            )
    formats = {_CODECS[kind] for kind in codecs}
    if len(formats) != 1:
        problem = "its grid has no tiles" if not formats else "it mixes HEVC and AV1"
        raise ImageError("corrupt" if not formats else "unsupported_format", f"heif: {problem}")
    format = formats.pop()
    for item in items:
        if item.kind != b"grid" and item.find(_CONFIGURATION[format]) is None:
            raise ImageError("corrupt", f"{format}: item {item.number} has no decoder configuration")
        if item.kind != b"grid" and not item.data:
            raise ImageError("truncated", f"{format}: item {item.number} has no data")
        for found in item.properties:
            if found.essential and found.kind not in KEPT:
                raise ImageError(
                    "unsupported_format",
                    f"{format}: it needs the property {name_of(found.kind)}, which is not read; convert it to a JPEG",
                )
    return format


def _check_reader(format: str) -> None:
    if format == "avif" and find_spec("PIL._avif") is None:
        raise ImageError(
            "unsupported_format", "this is an AVIF image, and this Pillow cannot read it; install Pillow>=11.3"
        )
    if format == "heif" and find_spec("pillow_heif") is None:
        raise ImageError(
            "unsupported_format", f"this is a HEIC image, and no decoder for it is installed; {install('heif')}"
        )


def _size(item: Item) -> tuple[int, int]:
    """Return the width and height of the property ispe."""
    body = item.find(b"ispe") or b""
    width, height = int.from_bytes(body[4:8], "big"), int.from_bytes(body[8:12], "big")
    if len(body) < 12 or not width or not height:
        raise ImageError("corrupt", f"heif: item {item.number} has no size")
    return width, height


def _check_grid(items: list[Item], width: int, height: int) -> None:
    """Check that a grid's tiles are there and cover the picture (ISO/IEC 23008-12, section 6.6.2.3)."""
    by_number = {item.number: item for item in items}
    for grid in items:
        if grid.kind != b"grid":
            continue
        body = grid.data
        wide = 4 if body[1:2] and body[1] & 1 else 2
        if len(body) < 4 + 2 * wide:
            raise ImageError("corrupt", "heif: its grid has no size")
        rows, columns = body[2] + 1, body[3] + 1
        size = int.from_bytes(body[4 : 4 + wide], "big"), int.from_bytes(body[4 + wide : 4 + 2 * wide], "big")
        if len(grid.tiles) != rows * columns or len(grid.tiles) > MOST_ITEMS:
            raise ImageError("corrupt", f"heif: its grid has {len(grid.tiles)} tiles and needs {rows * columns}")
        tiles = {_size(by_number[number]) for number in grid.tiles}
        tile = next(iter(tiles))
        covered = tile[0] * columns, tile[1] * rows
        if len(tiles) != 1 or size != _size(grid) or covered[0] < size[0] or covered[1] < size[1]:
            raise ImageError("corrupt", f"heif: the tiles of its grid do not make up {size[0]} x {size[1]} pixels")
        if covered[0] - size[0] >= tile[0] or covered[1] - size[1] >= tile[1]:
            raise ImageError("corrupt", "heif: its grid has tiles outside the picture")


def _kept(found: Property) -> bool:
    """Return whether pixels depend on a property. Only a colr of the kind nclx says how to make RGB."""
    return found.kind in KEPT and (found.kind != b"colr" or found.body[:4] == b"nclx")


def _transform(picture: Item, width: int, height: int) -> tuple[int, tuple[int, int, int, int]]:
    """Return the EXIF orientation that stands for irot and imir, and the window of clap in the stored picture.

    Properties are applied in their order. A clean aperture always comes first, as MIAF demands.
    """
    window = (0, 0, width, height)
    a, b, c, d = 1, 0, 0, 1
    for found in picture.properties:
        value = found.body[0] if found.body else 0
        if found.kind == b"irot":
            for _ in range(value & 3):  # anticlockwise
                a, b, c, d = c, d, -a, -b
        elif found.kind == b"imir":
            a, b, c, d = (-a, -b, c, d) if value & 1 else (a, b, -c, -d)
        elif found.kind == b"clap":
            window = _window(found.body, width, height)
    return _ORIENTATIONS[a, b, c, d], window


def _window(body: bytes, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the clean aperture as a box in the picture (ISO/IEC 14496-12, section 12.1.4)."""
    if len(body) < 32:
        raise ImageError("corrupt", "heif: its clean aperture has no size")
    parts = [int.from_bytes(body[at : at + 4], "big", signed=at in (16, 24)) for at in range(0, 32, 4)]
    if not all(parts[1::2]):
        raise ImageError("corrupt", "heif: its clean aperture divides by zero")
    (left, right), (top, bottom) = _span(parts[0:2], parts[4:6], width), _span(parts[2:4], parts[6:8], height)
    if left >= right or top >= bottom:
        raise ImageError("corrupt", "heif: its clean aperture is empty")
    return left, top, right, bottom


def _span(length: list[int], offset: list[int], side: int) -> tuple[int, int]:
    """Return where a clean aperture starts and ends along one side.

    length, offset: fractions. The offset is that of the aperture's middle from the picture's middle.
    """
    rounded = (2 * length[0] + length[1]) // (2 * length[1])
    # start = offset + (side - 1) / 2 - (length - 1) / 2, rounded down
    numerator = 2 * offset[0] * length[1] + side * offset[1] * length[1] - length[0] * offset[1]
    start = numerator // (2 * offset[1] * length[1])
    return max(0, start), min(side, start + rounded)


def _memory(format: str, items: list[Item], largest: tuple[int, int]) -> int:
    """Return an upper bound of the bytes that decoding takes.

    Measured: 10 to 12 bytes a pixel, 15 to 16 with more than 8 bits a sample, and 12 more with transparency.
    """
    width, height = _size(items[0])
    masked = any(item.masks for item in items)
    per_pixel = (18 if any(_deep(format, item) for item in items) else 14) + (12 if masked else 0)
    tile = 16 * largest[0] * largest[1] if items[0].kind == b"grid" else 0
    return (8 << 20) + width * height * per_pixel + tile + 2 * sum(len(item.data) for item in items)


def _deep(format: str, item: Item) -> bool:
    """Return whether the decoder configuration announces more than 8 bits a sample."""
    body = item.find(_CONFIGURATION[format]) or b""
    if format == "avif":
        return len(body) > 2 and bool(body[2] & 0x40)
    return len(body) > 17 and bool(body[17] & 7)

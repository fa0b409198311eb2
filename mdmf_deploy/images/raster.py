"""Containers to 8-bit RGB with Pillow: open, load, cut boxes, turn upright. Runs in this process or in a child."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images import jpeg_pixels
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.containers.jpeg import Jpeg
from mdmf_deploy.images.crops import Box, Pixels
from mdmf_deploy.images.limits import Note, ReadLimits
from mdmf_deploy.images.rgb import PILLOW_WARNINGS, TURNS, orientation_of, to_rgb, upright

# Opened directly, because Image.open turns MPO into another format and warns at Pillow's pixel limit instead of ours.
READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "gif": GifImagePlugin.GifImageFile,
}
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_STRIPS_AND_TILES = ((273, 279), (324, 325))  # tags of their offsets and byte counts


@dataclass(frozen=True, slots=True)
class Decoded:
    """A whole image.

    pixels: (H, W, 3) uint8, after EXIF orientation.  format: a name in containers.PARSERS.
    width, height: W and H, unless the pixels were reduced to fit.
    notes: as in Container.
    """

    pixels: Pixels
    width: int
    height: int
    format: str
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodedBoxes:
    """Boxes of an image.

    boxes: (h, w, 3) uint8 of each box.  width, height: of the whole image, after EXIF orientation.
    notes: as in Container.
    """

    boxes: tuple[Pixels, ...]
    width: int
    height: int
    format: str
    notes: tuple[Note, ...] = ()


def whole(container: Container, fit: tuple[int, int] | None, limits: ReadLimits) -> Decoded:
    """Decode a whole image, as `decode` describes."""
    return guarded(container, lambda source: _whole(container, source, fit, limits))


def boxes(container: Container, place: Callable[[int, int], Sequence[Box]], limits: ReadLimits) -> DecodedBoxes:
    """Decode the boxes that `place(height, width)` returns, as `decode_boxes` describes."""
    return guarded(container, lambda source: _boxes(container, source, place, limits))


def opened(container: Container, limits: ReadLimits) -> ImageFile.ImageFile:
    """Open a container. No pixel is read."""
    return guarded(container, lambda source: _opened(source, container, limits))


_T = TypeVar("_T")


def guarded(container: Container, work: Callable[[Source], _T]) -> _T:
    """Do work on a container's bytes, and turn what a decoder raises into an ImageError."""
    source = Source(container.data)
    try:
        with PILLOW_WARNINGS.kept():
            return work(source)
    except (ImageError, UsageError):
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageError("too_much_memory", f"{container.format}: its pixels do not fit into memory") from error
    except Exception as error:  # hostile bytes raise almost anything: SyntaxError, struct.error, OverflowError, ...
        if source.short or isinstance(error, EOFError) or "truncated" in str(error).lower():
            raise ImageError("truncated", f"{container.format}: it ends early ({_one_line(error)})") from error
        raise ImageError("corrupt", f"{container.format}: it is damaged ({_one_line(error)})") from error


class Source(io.BytesIO):
    """The file's bytes.

    short: whether a read asked for more bytes than are left. Set only while headers are read, piece by piece.
    """

    short = False
    in_header = True

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.short |= self.in_header and size is not None and size > len(data)
        return data


def _opened(source: Source, container: Container, limits: ReadLimits) -> ImageFile.ImageFile:
    data, format = container.data, container.format
    if format == "webp":
        # libwebp allocates its canvas as soon as it is opened, and gives no reason when it fails.
        limits.check_pixels(format, *_webp_size(data))
        source.short = int.from_bytes(data[4:8], "little") + 8 > len(data)
        source.in_header = False
    image = READERS[format](source)
    limits.check_pixels(format, *image.size)
    source.in_header = False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        source.short |= _pixels_end(image) > len(data)
        # A tile is allocated whole, even if the image shows little of it. A strip is never larger than the image.
        limits.check_pixels("tiff tile", image.tag_v2.get(_TILE_WIDTH, 0), image.tag_v2.get(_TILE_LENGTH, 0))
    return image


def _whole(container: Container, source: Source, fit: tuple[int, int] | None, limits: ReadLimits) -> Decoded:
    if isinstance(container, Jpeg):
        image: ImageFile.ImageFile = jpeg_pixels.load(container, reduction(container, fit))
    else:
        image = _opened(source, container, limits)
        image.load()
    stored = (container.width, container.height)
    orientation = _orientation(container, image)
    turn = TURNS.get(orientation)
    rgb = to_rgb(image, image, _depth(container), container.format)
    pixels = _copied(rgb if turn is None else rgb.transpose(turn))
    return Decoded(pixels, *upright(stored, orientation), container.format, container.notes)


def _boxes(
    container: Container, source: Source, place: Callable[[int, int], Sequence[Box]], limits: ReadLimits
) -> DecodedBoxes:
    if isinstance(container, Jpeg):
        return _jpeg_boxes(container, place)
    image = _opened(source, container, limits)
    if container.orientation is None:
        # Some formats store their orientation behind the pixels.
        image.load()
    orientation = _orientation(container, image)
    turn = TURNS.get(orientation)
    width, height = upright(image.size, orientation)
    stored = [_as_stored(box, orientation, image.size) for box in place(height, width)]
    image.load()
    boxes = []
    for box in stored:
        rgb = to_rgb(image.crop(box), image, _depth(container), container.format)
        boxes.append(np.asarray(rgb if turn is None else rgb.transpose(turn)))
    return DecodedBoxes(tuple(boxes), width, height, container.format, container.notes)


def _jpeg_boxes(jpeg: Jpeg, place: Callable[[int, int], Sequence[Box]]) -> DecodedBoxes:
    stored = _stored_boxes(jpeg, place)
    image = jpeg_pixels.load_top(jpeg, _lowest(jpeg, stored))
    orientation = jpeg.orientation or 1
    turn = TURNS.get(orientation)
    rgb = (to_rgb(image.crop(box), image, 8, "jpeg") for box in stored)
    parts = tuple(np.asarray(part if turn is None else part.transpose(turn)) for part in rgb)
    return DecodedBoxes(parts, *upright((jpeg.width, jpeg.height), orientation), "jpeg", jpeg.notes)


def rows_needed(jpeg: Jpeg, place: Callable[[int, int], Sequence[Box]]) -> int:
    """Return how many rows of a JPEG, from the top as stored, are decoded for the boxes that `place` returns."""
    return _lowest(jpeg, _stored_boxes(jpeg, place))


def reduction(container: Container, fit: tuple[int, int] | None) -> int:
    """Return by how much an image is reduced while it is decoded: 1, 2, 4 or 8.  fit: as in `decode`."""
    if fit is None or not isinstance(container, Jpeg):
        return 1
    width, height = upright((container.width, container.height), container.orientation or 1)
    return next((zoom for zoom in (8, 4, 2) if width >= zoom * fit[0] or height >= zoom * fit[1]), 1)


def _stored_boxes(jpeg: Jpeg, place: Callable[[int, int], Sequence[Box]]) -> list[Box]:
    size, orientation = (jpeg.width, jpeg.height), jpeg.orientation or 1
    width, height = upright(size, orientation)
    return [_as_stored(box, orientation, size) for box in place(height, width)]


def _lowest(jpeg: Jpeg, stored: Sequence[Box]) -> int:
    return jpeg.height_for(max(bottom for _, _, _, bottom in stored))


def _orientation(container: Container, image: Image.Image) -> int:
    return orientation_of(image) if container.orientation is None else container.orientation


def _depth(container: Container) -> int:
    """Return the bits per sample in a PNG's header, else 8."""
    return container.data[24] if container.format == "png" else 8


def _as_stored(box: Box, orientation: int, size: tuple[int, int]) -> Box:
    """Return the place of an upright image's box in the image as stored, whose (width, height) is `size`."""
    left, top, right, bottom = box if orientation < 5 else (box[1], box[0], box[3], box[2])
    if orientation in (2, 3, 7, 8):
        left, right = size[0] - right, size[0] - left
    if orientation in (3, 4, 6, 7):
        top, bottom = size[1] - bottom, size[1] - top
    return left, top, right, bottom


def _pixels_end(image: TiffImagePlugin.TiffImageFile) -> int:
    """Return the offset behind the last strip or tile, according to the header."""
    return max(
        int(offset + count)
        for offsets, counts in _STRIPS_AND_TILES
        for offset, count in zip(image.tag_v2.get(offsets, (0,)), image.tag_v2.get(counts, (0,)), strict=False)
    )


def _copied(image: Image.Image) -> Pixels:
    """Return (H, W, 3) of an RGB image, copied in bands that fit the cache.

    At 12 megapixels this takes a third of the time of one numpy.asarray.
    """
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 64):
        bottom = min(height, top + 64)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return the canvas size in a WebP's first chunk, or (0, 0) if it is cut (RFC 9649, sections 2.5 to 2.7)."""
    chunk, head = data[12:16], data[20:30]
    if chunk == b"VP8X" and len(head) == 10:
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if chunk == b"VP8L" and len(head) >= 5:
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and len(head) == 10:
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    return 0, 0


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return "its header gives no size" if text == "not identified by this driver" else text

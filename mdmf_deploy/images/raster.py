"""Containers to 8-bit RGB with Pillow: open, load, cut boxes, turn upright. Runs in this process or in a child."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    TiffImagePlugin,
)

from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images import codecs, jpeg_pixels
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.containers.jpeg import Jpeg
from mdmf_deploy.images.containers.parts import BAND
from mdmf_deploy.images.crops import Box, Pixels
from mdmf_deploy.images.limits import Note, ReadLimits
from mdmf_deploy.images.readers import Png, WebP
from mdmf_deploy.images.rgb import PILLOW_WARNINGS, TURNS, orientation_of, to_rgb, upright

# Opened directly, because Image.open turns MPO into another format and warns at Pillow's pixel limit instead of ours.
READERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "png": Png,
    "webp": WebP,
    "tiff": TiffImagePlugin.TiffImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "avif": codecs.avif,
    "heif": codecs.heif,
    "jpeg2000": codecs.jpeg2000,
    "jpeg_xl": codecs.jpeg_xl,
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
        if source.short or isinstance(error, EOFError) or re.search("truncated|not enough", str(error).lower()):
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


def _opened(source: Source, container: Container, limits: ReadLimits) -> Image.Image:
    data, format = container.data, container.format
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
        image: Image.Image = jpeg_pixels.load(container, reduction(container, fit))
    else:
        image = _opened(source, container, limits)
        image.load()
    stored = (container.width, container.height)
    orientation = _orientation(container, image)
    pixels = _cut(container, image, (0, 0, *_canvas(container, image)), orientation)
    width, height = upright(stored if container.offset is None else _canvas(container, image), orientation)
    return Decoded(pixels, width, height, container.format, container.notes)


def _boxes(
    container: Container, source: Source, place: Callable[[int, int], Sequence[Box]], limits: ReadLimits
) -> DecodedBoxes:
    if isinstance(container, Jpeg):
        return _jpeg_boxes(container, place)
    image = _opened(source, container, limits)
    if container.orientation is None:
        # Some formats store their orientation behind the pixels.
        image.load()
    orientation, canvas = _orientation(container, image), _canvas(container, image)
    width, height = upright(canvas, orientation)
    stored = [_as_stored(box, orientation, canvas) for box in place(height, width)]
    image.load()
    boxes = tuple(_cut(container, image, box, orientation) for box in stored)
    return DecodedBoxes(boxes, width, height, container.format, container.notes)


def _canvas(container: Container, image: Image.Image) -> tuple[int, int]:
    """Return the width and height that boxes refer to, as stored."""
    return image.size if container.offset is None else (container.width, container.height)


def _cut(container: Container, image: Image.Image, box: Box, orientation: int) -> Pixels:
    """Return (h, w, 3) of a box of the image as stored, turned upright.

    It is converted in bands that fit the cache. At 12 megapixels this takes a third of the time of doing it at once,
    and no other copy of the whole image is ever made.
    """
    left, top, right, bottom = box
    height, turn = bottom - top, TURNS.get(orientation)
    across, down = upright((right - left, height), orientation)
    pixels = np.empty((down, across, 3), np.uint8)
    rows = max(1, BAND // max(1, right - left))
    if rows >= height:
        rgb = _on_canvas(container, image, box)
        return np.asarray(rgb if turn is None else rgb.transpose(turn))
    for upper in range(0, height, rows):
        lower = min(height, upper + rows)
        rgb = _on_canvas(container, image, (left, top + upper, right, top + lower))
        first, last = (height - lower, height - upper) if orientation in (3, 4, 6, 7) else (upper, lower)
        where = slice(first, last)
        part = pixels[where] if orientation < 5 else pixels[:, where]
        part[...] = np.asarray(rgb if turn is None else rgb.transpose(turn))
    return pixels


def _on_canvas(container: Container, image: Image.Image, box: Box) -> Image.Image:
    """Return a box of the image as stored in RGB. The pixels that the file lacks are white, like transparent ones."""
    if container.offset is None:
        return to_rgb(image.crop(box), image, _depth(container), container.format)
    x, y = container.offset
    left, top = max(box[0], x), max(box[1], y)
    right, bottom = min(box[2], x + image.width), min(box[3], y + image.height)
    white = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), "white")
    if left < right and top < bottom:
        part = image.crop((left - x, top - y, right - x, bottom - y))
        rgb = to_rgb(part, image, _depth(container), container.format)
        white.paste(rgb, (left - box[0], top - box[1]))
    return white


def _jpeg_boxes(jpeg: Jpeg, place: Callable[[int, int], Sequence[Box]]) -> DecodedBoxes:
    stored = _stored_boxes(jpeg, place)
    image = jpeg_pixels.load_top(jpeg, _lowest(jpeg, stored))
    orientation = jpeg.orientation or 1
    parts = tuple(_cut(jpeg, image, box, orientation) for box in stored)
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


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return "its header gives no size" if text == "not identified by this driver" else text

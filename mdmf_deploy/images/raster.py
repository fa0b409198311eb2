"""Containers to 8-bit RGB with Pillow: open, load, cut boxes, turn upright. Runs in this process or in a child."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    TiffImagePlugin,
)

from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images import jpeg_rows
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.containers.parts import BAND
from mdmf_deploy.images.crops import Box, Pixels
from mdmf_deploy.images.limits import Note, ReadLimits
from mdmf_deploy.images.readers import Png, WebP
from mdmf_deploy.images.rgb import LOG, PILLOW_WARNINGS, TURNS, orientation_of, to_rgb, upright

# Opened directly, because Image.open turns MPO into another format and warns at Pillow's pixel limit instead of ours.
READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": Png,
    "webp": WebP,
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


def _opened(source: Source, container: Container, limits: ReadLimits) -> ImageFile.ImageFile:
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
    image = _opened(source, container, limits)
    stored = image.size
    if fit is not None and container.format == "jpeg":
        width, height = upright(stored, orientation_of(image))
        zoom = min(fit[0] / width, fit[1] / height)
        image.draft(image.mode, (math.ceil(stored[0] * zoom), math.ceil(stored[1] * zoom)))
    image.load()
    orientation = _orientation(container, image)
    pixels = _cut(container, image, image, (0, 0, *_canvas(container, image)), orientation)
    width, height = upright(stored if container.offset is None else _canvas(container, image), orientation)
    return Decoded(pixels, width, height, container.format, container.notes)


def _boxes(
    container: Container, source: Source, place: Callable[[int, int], Sequence[Box]], limits: ReadLimits
) -> DecodedBoxes:
    image = _opened(source, container, limits)
    if container.format != "jpeg" and container.orientation is None:
        # Some formats store their orientation behind the pixels.
        image.load()
    orientation, canvas = _orientation(container, image), _canvas(container, image)
    width, height = upright(canvas, orientation)
    stored = [_as_stored(box, orientation, canvas) for box in place(height, width)]
    loaded = _loaded(container, image, max(bottom for _, _, _, bottom in stored))
    boxes = tuple(_cut(container, loaded, image, box, orientation) for box in stored)
    return DecodedBoxes(boxes, width, height, container.format, container.notes)


def _canvas(container: Container, image: Image.Image) -> tuple[int, int]:
    """Return the width and height that boxes refer to, as stored."""
    return image.size if container.offset is None else (container.width, container.height)


def _cut(container: Container, loaded: Image.Image, file: Image.Image, box: Box, orientation: int) -> Pixels:
    """Return (h, w, 3) of a box of the image as stored, turned upright.

    It is converted in bands that fit the cache. At 12 megapixels this takes a third of the time of doing it at once,
    and no other copy of the whole image is ever made.
    """
    left, top, right, bottom = box
    height, turn = bottom - top, TURNS.get(orientation)
    across, down = upright((right - left, height), orientation)
    pixels = np.empty((down, across, 3), np.uint8)
    rows = max(1, BAND // (right - left))
    for upper in range(0, height, rows):
        lower = min(height, upper + rows)
        rgb = _on_canvas(container, loaded, file, (left, top + upper, right, top + lower))
        first, last = (height - lower, height - upper) if orientation in (3, 4, 6, 7) else (upper, lower)
        where = slice(first, last)
        part = pixels[where] if orientation < 5 else pixels[:, where]
        part[...] = np.asarray(rgb if turn is None else rgb.transpose(turn))
    return pixels


def _on_canvas(container: Container, loaded: Image.Image, file: Image.Image, box: Box) -> Image.Image:
    """Return a box of the image as stored in RGB. The pixels that the file lacks are white, like transparent ones."""
    if container.offset is None:
        return to_rgb(loaded.crop(box), file, _depth(container), container.format)
    x, y = container.offset
    left, top = max(box[0], x), max(box[1], y)
    right, bottom = min(box[2], x + loaded.width), min(box[3], y + loaded.height)
    white = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), "white")
    if left < right and top < bottom:
        part = loaded.crop((left - x, top - y, right - x, bottom - y))
        rgb = to_rgb(part, file, _depth(container), container.format)
        white.paste(rgb, (left - box[0], top - box[1]))
    return white


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


def _loaded(container: Container, image: ImageFile.ImageFile, rows: int) -> Image.Image:
    """Load the image as stored, or only a part from the top that contains these rows."""
    if container.format == "jpeg":
        part = jpeg_rows.shortened(container.data, rows)
        if part is not None:
            try:
                short = JpegImagePlugin.JpegImageFile(io.BytesIO(part))
                short.load()
                return short
            except Exception as error:  # decoding the whole file gives the proper error
                LOG.debug("decoding all rows, since the first %d failed: %s", rows, error)
    image.load()
    return image


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

"""The decode policy: the bytes of an image file become 8-bit RGB. No rule depends on pixel values.

Formats: JPEG, PNG, WebP, TIFF, BMP and GIF, recognised by their first bytes, never by name. Of an animation or several
pages, the first counts. EXIF orientation is applied, and ICC profiles are ignored. Conversion to 8-bit RGB:
  grey, 1-bit, palette    repeated, or looked up
  alpha, colour keys      laid over white: (a * c + (255 - a) * 255) / 255, rounded to the nearest
  16-bit colour           the high byte, v >> 8. The colour key of a 16-bit colour PNG is ignored.
  16-bit and 12-bit grey  the highest 8 bits, inverted if the TIFF declares white to be zero
  CMYK, YCCK              (255 - c) * (255 - k) / 255. A JPEG stores them inverted, as Adobe does.
  Lab, float, 32-bit or signed integers: refused ("unsupported_mode"), because they declare no range to map to 8 bits
A JPEG whose entropy-coded data are complete but damaged decodes as libjpeg decodes it, because Pillow hides libjpeg's
warnings.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import PIL
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.files import refuse_url
from mdmf_deploy.images import jpeg_rows
from mdmf_deploy.images.crops import Box, Pixels
from mdmf_deploy.images.inputs import uri, why_missing
from mdmf_deploy.images.magic import image_format
from mdmf_deploy.images.rgb import LOG, PILLOW_WARNINGS, TURNS, orientation_of, to_rgb, upright

__all__ = [
    "Code",
    "Decoded",
    "DecodedBoxes",
    "ReadLimits",
    "decode",
    "decode_boxes",
    "decoder_version",
    "read",
]

Code = Literal[
    "missing",  # no such file
    "not_a_file",  # a folder, pipe, socket or device
    "unreadable",  # the system refuses to open or read it
    "empty",  # no bytes
    "too_many_bytes",  # more than ReadLimits.max_bytes
    "too_many_pixels",  # more than ReadLimits.max_pixels, or than memory holds
    "unsupported_format",  # none of the formats above, whatever its name
    "unsupported_mode",  # one of these formats, in a pixel layout without a sensible 8-bit RGB
    "truncated",  # the file ends before its pixels do
    "corrupt",  # the header or data make no sense
    "not_finite",  # decoded, but the model or the runtime returned a score that is not finite
]
"""Every code of an ImageError. They are stable."""

# Opened directly, because Image.open turns MPO into another format and warns at Pillow's pixel limit instead of ours.
READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "gif": GifImagePlugin.GifImageFile,
}
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_STRIPS_AND_TILES = ((273, 279), (324, 325))  # tags of their offsets and byte counts


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """The size of image that may be read.  max_pixels: width x height.  max_bytes: of the file."""

    max_pixels: int = 100_000_000
    max_bytes: int = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Decoded:
    """A whole image.

    pixels: (H, W, 3) uint8, after EXIF orientation.  format: "jpeg", "png", "webp", "tiff", "bmp" or "gif".
    width, height: W and H, unless the pixels were reduced to fit.
    """

    pixels: Pixels
    width: int
    height: int
    format: str


@dataclass(frozen=True, slots=True)
class DecodedBoxes:
    """Boxes of an image.

    boxes: (h, w, 3) uint8 of each box.  width, height: of the whole image, after EXIF orientation.
    """

    boxes: tuple[Pixels, ...]
    width: int
    height: int
    format: str


def decoder_version() -> str:
    """Return the decoders and their versions. Another version of a lossy codec may give other pixels."""
    parts = [f"Pillow {PIL.__version__}"]
    for feature, name in (("libjpeg_turbo", "libjpeg-turbo"), ("webp", "libwebp"), ("libtiff", "libtiff")):
        version = features.version(feature)
        if version:
            parts.append(f"{name} {version}")
    return ", ".join(parts)


def read(path: str | Path, limits: ReadLimits = ReadLimits()) -> bytes:
    """Read a regular file. Never wait on a pipe, and never open a device.

    Raises ImageError missing, not_a_file, unreadable or too_many_bytes.
    """
    name = uri(path)
    try:
        _regular(Path(path).stat().st_mode, name)
        # O_NONBLOCK, because a pipe may take the file's place between the two checks.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor has no path)
            status = os.fstat(descriptor)
            _regular(status.st_mode, name)
            if status.st_size <= limits.max_bytes:
                return file.read(status.st_size)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("missing", why_missing(path)) from error
    except (OSError, ValueError) as error:
        # A data URL is longer than any name may be.
        refused = refuse_url(path)
        if refused is not None:
            raise ImageError("missing", refused) from error
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError("unreadable", f"{name} cannot be read: {reason}") from error
    raise ImageError("too_many_bytes", f"{name} is larger than the {limits.max_bytes} bytes allowed")


def decode(data: bytes, limits: ReadLimits = ReadLimits(), *, fit: tuple[int, int] | None = None) -> Decoded:
    """Decode the first image in `data`, whole, to 8-bit RGB. Safe to call from many threads.

    fit: a width and height into which the caller will scale the image down. If it is a JPEG, it may come at a half, a
        quarter or an eighth of its size, which is faster, but never smaller than that.
    Raises ImageError with a code of Code for any bad bytes (never missing, not_a_file, unreadable or not_finite).
    Raises UsageError if this process lets Pillow accept truncated images.
    """
    return _guarded(data, limits, lambda file: _whole(file, fit))


def decode_boxes(
    data: bytes, place: Callable[[int, int], Sequence[Box]], limits: ReadLimits = ReadLimits()
) -> DecodedBoxes:
    """Decode only the boxes that `place(height, width)` returns. Pixels and errors are those of `decode`.

    The rows of a baseline JPEG below the lowest box are not decoded (mdmf_deploy.images.jpeg_rows).
    """
    return _guarded(data, limits, lambda file: _boxes(file, place))


@dataclass(frozen=True, slots=True)
class _File:
    """A file whose header has been read, but not its pixels."""

    data: bytes
    format: str
    image: ImageFile.ImageFile

    @property
    def depth(self) -> int:
        """Bits per sample in a PNG's header, else 8."""
        return self.data[24] if self.format == "png" else 8


_T = TypeVar("_T")


def _guarded(data: bytes, limits: ReadLimits, work: Callable[[_File], _T]) -> _T:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True in this process, so truncated images would pass for whole "
            "ones; set it to False before detecting"
        )
    if not data:
        raise ImageError("empty", "the input holds no bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too_many_bytes", f"{len(data)} bytes are more than the {limits.max_bytes} allowed")
    format = _format(data)
    source = _Source(data)
    try:
        with PILLOW_WARNINGS.kept():
            return work(_opened(source, data, format, limits))
    except ImageError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageError("too_many_pixels", f"{format}: its pixels do not fit into memory") from error
    except Exception as error:  # hostile bytes raise almost anything: SyntaxError, struct.error, OverflowError, ...
        if source.short or isinstance(error, EOFError) or "truncated" in str(error).lower():
            raise ImageError("truncated", f"{format}: it ends early ({_one_line(error)})") from error
        raise ImageError("corrupt", f"{format}: it is damaged ({_one_line(error)})") from error


class _Source(io.BytesIO):
    """The file's bytes.

    short: whether a read asked for more bytes than are left. Set only while headers are read, piece by piece.
    """

    short = False
    in_header = True

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.short |= self.in_header and size is not None and size > len(data)
        return data


def _opened(source: _Source, data: bytes, format: str, limits: ReadLimits) -> _File:
    if format == "webp":
        # libwebp allocates its canvas as soon as it is opened, and gives no reason when it fails.
        _check_size(format, _webp_size(data), limits)
        source.short = int.from_bytes(data[4:8], "little") + 8 > len(data)
        source.in_header = False
    image = READERS[format](source)
    _check_size(format, image.size, limits)
    source.in_header = False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        source.short |= _pixels_end(image) > len(data)
        # A tile is allocated whole, even if the image shows little of it. A strip is never larger than the image.
        _check_size("tiff tile", (image.tag_v2.get(_TILE_WIDTH, 0), image.tag_v2.get(_TILE_LENGTH, 0)), limits)
    return _File(data, format, image)


def _whole(file: _File, fit: tuple[int, int] | None) -> Decoded:
    image, stored = file.image, file.image.size
    if fit is not None and file.format == "jpeg":
        width, height = upright(stored, orientation_of(image))
        zoom = min(fit[0] / width, fit[1] / height)
        image.draft(image.mode, (math.ceil(stored[0] * zoom), math.ceil(stored[1] * zoom)))
    image.load()
    orientation = orientation_of(image)
    turn = TURNS.get(orientation)
    rgb = to_rgb(image, image, file.depth, file.format)
    pixels = _copied(rgb if turn is None else rgb.transpose(turn))
    return Decoded(pixels, *upright(stored, orientation), file.format)


def _boxes(file: _File, place: Callable[[int, int], Sequence[Box]]) -> DecodedBoxes:
    image = file.image
    if file.format != "jpeg":
        # Some formats store their orientation behind the pixels.
        image.load()
    orientation = orientation_of(image)
    turn = TURNS.get(orientation)
    width, height = upright(image.size, orientation)
    stored = [_as_stored(box, orientation, image.size) for box in place(height, width)]
    loaded = _loaded(file, max(bottom for _, _, _, bottom in stored))
    boxes = []
    for box in stored:
        rgb = to_rgb(loaded.crop(box), image, file.depth, file.format)
        boxes.append(np.asarray(rgb if turn is None else rgb.transpose(turn)))
    return DecodedBoxes(tuple(boxes), width, height, file.format)


def _as_stored(box: Box, orientation: int, size: tuple[int, int]) -> Box:
    """Return the place of an upright image's box in the image as stored, whose (width, height) is `size`."""
    left, top, right, bottom = box if orientation < 5 else (box[1], box[0], box[3], box[2])
    if orientation in (2, 3, 7, 8):
        left, right = size[0] - right, size[0] - left
    if orientation in (3, 4, 6, 7):
        top, bottom = size[1] - bottom, size[1] - top
    return left, top, right, bottom


def _loaded(file: _File, rows: int) -> Image.Image:
    """Load the image as stored, or only a part from the top that contains these rows."""
    if file.format == "jpeg":
        part = jpeg_rows.shortened(file.data, rows)
        if part is not None:
            try:
                image = JpegImagePlugin.JpegImageFile(io.BytesIO(part))
                image.load()
                return image
            except Exception as error:  # decoding the whole file gives the proper error
                LOG.debug("decoding all rows, since the first %d failed: %s", rows, error)
    file.image.load()
    return file.image


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


def _format(data: bytes) -> str:
    format = image_format(data)
    if format is not None:
        return format
    raise ImageError(
        "unsupported_format",
        "these bytes are not a JPEG, PNG, WebP, TIFF, BMP or GIF; convert the image to one of them",
    )


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


def _check_size(format: str, size: tuple[int, int], limits: ReadLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageError(
            "too_many_pixels", f"{format} of {width} x {height} pixels is larger than the {limits.max_pixels} allowed"
        )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return "its header gives no size" if text == "not identified by this driver" else text


def _regular(mode: int, name: str) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ImageError("not_a_file", f"{name} is {kind}; name an image file")

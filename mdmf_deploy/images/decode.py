"""The decode policy: the bytes of an image file become 8-bit RGB. No rule depends on pixel values.

Formats: JPEG, PNG, WebP, TIFF, BMP and GIF, recognised by their first bytes, never by name. Of an animation or several
pages, the first counts. EXIF orientation is applied, and ICC profiles are ignored. Conversion to 8-bit RGB:
  grey, 1-bit, palette    repeated, or looked up
  alpha, colour keys      laid over white: (a * c + (255 - a) * 255) / 255, rounded to the nearest
  16-bit colour           the high byte, v >> 8. The colour key of a 16-bit colour PNG is ignored.
  16-bit and 12-bit grey  the highest 8 bits, inverted if the TIFF declares white to be zero
  CMYK, YCCK              (255 - c) * (255 - k) / 255. A JPEG stores them inverted, as Adobe does.
  Lab, float, 32-bit or signed integers: refused ("unsupported_mode"), because they declare no range to map to 8 bits
A JPEG is decoded if its pixels are there (mdmf_deploy.images.jpeg_pixels), whatever markers say. If its data are all
there but damaged, it decodes as libjpeg decodes it, because Pillow hides libjpeg's warnings.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import PIL
from PIL import ImageFile, features

from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.files import refuse_url
from mdmf_deploy.images import isolation, raster
from mdmf_deploy.images.budget import DECODING
from mdmf_deploy.images.containers import Container, parse
from mdmf_deploy.images.containers.jpeg import Jpeg
from mdmf_deploy.images.crops import Box
from mdmf_deploy.images.inputs import uri, why_missing
from mdmf_deploy.images.limits import DEFAULT_LIMITS, Code, ReadLimits
from mdmf_deploy.images.raster import Decoded, DecodedBoxes

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


def decoder_version() -> str:
    """Return the decoders and their versions. Another version of a lossy codec may give other pixels."""
    parts = [f"Pillow {PIL.__version__}"]
    for feature, name in (("libjpeg_turbo", "libjpeg-turbo"), ("webp", "libwebp"), ("libtiff", "libtiff")):
        version = features.version(feature)
        if version:
            parts.append(f"{name} {version}")
    return ", ".join(parts)


def read(path: str | Path, limits: ReadLimits = DEFAULT_LIMITS) -> bytes:
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


def decode(data: bytes, limits: ReadLimits = DEFAULT_LIMITS, *, fit: tuple[int, int] | None = None) -> Decoded:
    """Decode the first image in `data`, whole, to 8-bit RGB. Safe to call from many threads.

    fit: a width and height into which the caller will scale the image down. If it is a JPEG, it may come at a half, a
        quarter or an eighth of its size, which is faster, but never smaller than that.
    Raises ImageError with a code of Code for any bad bytes (never missing, not_a_file, unreadable or not_finite).
    Raises UsageError if this process lets Pillow accept truncated images.
    """
    container = _parsed(data, limits)
    # A JPEG may be reduced while it is decoded.
    zoom = raster.reduction(container, fit)
    pixels = (-(-container.width // zoom), -(-container.height // zoom))
    memory = container.memory // zoom**2
    limits.check_pixels(container.format, *pixels)
    limits.check_memory(container.format, memory + 3 * pixels[0] * pixels[1])
    with DECODING.held(memory, limits.max_memory):
        if container.isolated:
            return isolation.whole(container, limits)
        return raster.whole(container, fit, limits)


def decode_boxes(
    data: bytes, place: Callable[[int, int], Sequence[Box]], limits: ReadLimits = DEFAULT_LIMITS
) -> DecodedBoxes:
    """Decode only the boxes that `place(height, width)` returns. Pixels and errors are those of `decode`.

    The rows of a baseline JPEG below the lowest box are not decoded (mdmf_deploy.images.containers.jpeg).
    """
    container = _parsed(data, limits)
    rows, memory = container.height, container.memory
    if isinstance(container, Jpeg):
        rows = raster.rows_needed(container, place)
        memory = container.memory_for(rows)
    limits.check_pixels(container.format, container.width, container.height, rows)
    limits.check_memory(container.format, memory)
    with DECODING.held(memory, limits.max_memory):
        if container.isolated:
            return isolation.boxes(container, place, limits)
        return raster.boxes(container, place, limits)


def _parsed(data: bytes, limits: ReadLimits) -> Container:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True in this process, so truncated images would pass for whole "
            "ones; set it to False before detecting"
        )
    if not data:
        raise ImageError("empty", "the input holds no bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too_many_bytes", f"{len(data)} bytes are more than the {limits.max_bytes} allowed")
    return parse(data, limits)


def _regular(mode: int, name: str) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ImageError("not_a_file", f"{name} is {kind}; name an image file")

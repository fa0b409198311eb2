"""The decode policy: the bytes of an image file become 8-bit RGB. No rule depends on pixel values.

Formats: JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, HEIC, JPEG 2000 and JPEG XL, recognised by their first bytes, never by
name. AVIF needs Pillow 11.3, HEIC the extra heif and JPEG XL the extra jxl. Of an animation or several pages, the first
counts. An animated JPEG XL is refused, because its decoder returns the last frame. EXIF orientation is applied, except
to HEIC, AVIF and JPEG XL, which have an orientation of their own. ICC profiles are ignored. Conversion to 8-bit RGB:
  grey, 1-bit, palette    repeated, or looked up
  alpha, colour keys      laid over white: (a * c + (255 - a) * 255) / 255, rounded to the nearest
  16-bit colour           the high byte, v >> 8. The colour key of a 16-bit colour PNG is ignored.
  16-bit and 12-bit grey  the highest 8 bits, inverted if the TIFF declares white to be zero
  HEIC of 10 or 12 bits   the highest 8 bits
  AVIF of 10 or 12 bits   scaled to 0 to 255 and rounded by libavif, while it makes RGB of YCbCr
  JPEG 2000               of 8 bits, or grey of up to 16. Deeper colour is refused, because Pillow wraps its white.
  JPEG XL                 of integers. Libjxl makes 8 bits of what is deeper.
  CMYK, YCCK              (255 - c) * (255 - k) / 255. A JPEG stores them inverted, as Adobe does.
  Lab, float, 32-bit or signed integers: refused ("unsupported_mode"), because they declare no range to map to 8 bits.
  So are CMYK in JPEG 2000 and JPEG XL, and premultiplied alpha in them.
Rules of single formats:
  PNG        orientation from an eXIf chunk only, like browsers. Chunks without pixels and a bad tRNS don't count.
  GIF, WebP  the area that the first frame does not cover is transparent, hence white. A frame that reaches over the
             edges of a GIF's screen enlarges it. Lossless WebP data that end early are "corrupt" if all sizes agree.
  BMP        a run-length coded one is "truncated" if it ends before its last pixel; what it skips has colour 0
A JPEG is decoded if its pixels are there (mdmf_deploy.images.jpeg_pixels), whatever markers say. If its data are all
there but damaged, it decodes as libjpeg decodes it, because Pillow hides libjpeg's warnings. Damage inside the coded
data of HEIC, AVIF and JPEG 2000 may pass as well, because they hold no checksum.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import PIL
from PIL import ImageFile, features

from mdmf_deploy.errors import ImageError, UsageError, version
from mdmf_deploy.files import refuse_url
from mdmf_deploy.images import isolation, raster
from mdmf_deploy.images.budget import DECODING
from mdmf_deploy.images.containers import Container, parse
from mdmf_deploy.images.containers.jpeg import Jpeg
from mdmf_deploy.images.crops import Box
from mdmf_deploy.images.inputs import uri, why_missing
from mdmf_deploy.images.isolation.owners import Ended, owner
from mdmf_deploy.images.limits import DEFAULT_LIMITS, Code, ReadLimits
from mdmf_deploy.images.magic import HEAD, video_format
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
    "read_unless_video",
    "sha256_of_video",
]


# Pillow's name for a library -> its own
_LIBRARIES = (
    ("libjpeg_turbo", "libjpeg-turbo"),
    ("webp", "libwebp"),
    ("libtiff", "libtiff"),
    ("jpg_2000", "OpenJPEG"),
    ("avif", "libavif"),
)


def decoder_version() -> str:
    """Return the decoders and their versions. Another version of a lossy codec may give other pixels."""
    parts = [f"Pillow {PIL.__version__}"]
    for feature, name in _LIBRARIES:
        # Pillow before 11.3 does not know AVIF, and warns.
        known = feature in {*features.modules, *features.codecs, *features.features}
        found = features.version(feature) if known else None
        if found:
            parts.append(f"{name} {found}")
    for package in ("pillow-heif", "pillow-jxl-plugin"):
        found = version(package)
        if found:
            parts.append(f"{package} {found}")
    return ", ".join(parts)


def read(path: str | Path, limits: ReadLimits = DEFAULT_LIMITS) -> bytes:
    """Read a regular file. Never wait on a pipe, and never open a device.

    Raises ImageError missing, not_a_file, unreadable or too_many_bytes.
    """
    with _opened(path) as (file, size):
        if size <= limits.max_bytes:
            return file.read(size)
    raise ImageError("too_many_bytes", f"{uri(path)} is larger than the {limits.max_bytes} bytes allowed")


def read_unless_video(path: str | Path, limits: ReadLimits = DEFAULT_LIMITS) -> tuple[bytes, bytes | None]:
    """Read a regular file. Return its first bytes, and all of them or, for a video, None.

    Raises ImageError as `read` does.
    """
    with _opened(path) as (file, size):
        start = file.read(HEAD)
        if video_format(start) is not None:
            return start, None
        if size <= limits.max_bytes:
            file.seek(0)
            return start, file.read(size)
    raise ImageError("too_many_bytes", f"{uri(path)} is larger than the {limits.max_bytes} bytes allowed")


def sha256_of_video(path: str | Path, limits: ReadLimits = DEFAULT_LIMITS) -> str:
    """Return the hash of a regular file that may be larger than the memory. Raises ImageError as `read` does."""
    digest = hashlib.sha256()
    with _opened(path) as (file, size):
        while size <= limits.max_video_bytes:
            part = file.read(1 << 20)
            if not part:
                return digest.hexdigest()
            if owner().ended:
                raise Ended
            digest.update(part)
    raise ImageError("too_many_bytes", f"{uri(path)} is larger than the {limits.max_video_bytes} bytes of a video")


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, and yield it with its size. Raises ImageError for all that goes wrong in the block."""
    try:
        _check_regular(os.stat(path).st_mode, path)  # noqa: PTH116 (a Path for each file takes longer than its status)
        # O_NONBLOCK, because a pipe may take the file's place between the two checks.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor has no path)
            status = os.fstat(descriptor)
            _check_regular(status.st_mode, path)
            yield file, status.st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("missing", why_missing(path)) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # This says nothing about the file, and all files after it would get such a row.
        # A data URL is longer than any name may be.
        refused = refuse_url(path)
        if refused is not None:
            raise ImageError("missing", refused) from error
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError("unreadable", f"{uri(path)} cannot be read: {reason}") from error


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


def _check_regular(mode: int, path: str | Path) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ImageError("not_a_file", f"{uri(path)} is {kind}; name an image file")

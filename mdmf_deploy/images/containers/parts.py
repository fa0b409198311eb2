"""Arithmetic that the parsers share: how many parts a file may have, and what an image takes in memory."""

from __future__ import annotations

from mdmf_deploy.errors import ImageError

MOST_PARTS = 2**20
"""Chunks or blocks that a file may have. A walk over so many takes one or two seconds."""
SLACK = 4 * 2**20
"""Bytes that a decoder takes for anything but pixels."""


BAND = 2**18
"""Pixels that are converted to RGB at once: they fit the cache. A band has whole rows, and one at least."""


def too_many_parts(format: str) -> ImageError:
    """Return the error for a file of more than MOST_PARTS parts."""
    return ImageError(
        "too_slow", f"{format}: it has more than {MOST_PARTS:,} parts, which no writer makes; save the image anew"
    )


def truncated(format: str, what: str) -> ImageError:
    """Return the error for a file that ends too early."""
    return ImageError("truncated", f"{format}: it ends early ({what}); get the whole file")


def corrupt(format: str, what: str) -> ImageError:
    """Return the error for a file that makes no sense."""
    return ImageError("corrupt", f"{format}: it is damaged ({what}); save the image anew")


def pillow_bytes(width: int, height: int, pixel: int) -> int:
    """Return the bytes of a Pillow image: rows of whole 4 bytes, and a pointer for each.  pixel: bytes per pixel."""
    return height * (8 + -(-width * pixel // 4) * 4)


def rgb_bytes(width: int, height: int) -> int:
    """Return the bytes of converting an image to (H, W, 3) uint8, band by band (mdmf_deploy.images.raster)."""
    return 3 * width * height + 32 * min(width * height, max(BAND, width))

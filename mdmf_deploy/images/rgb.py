"""Pillow, adapted: pixels become 8-bit RGB and upright by the decode policy (decode.py), and warnings are logged."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from mdmf_deploy.errors import ImageError

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
# Users filter on this name.
LOG = logging.getLogger("mdmf_deploy.images")
_ORIENTATION = 274
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> how to turn the pixels upright. The orientation 1 needs no turn."""


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8.

    A missing or unreadable one counts as 1. EXIF holds no pixels, so it cannot make an image corrupt.
    """
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1
    return orientation if orientation in TURNS else 1


def upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the width and height of an image after it is turned upright."""
    return size if orientation < 5 else size[::-1]


def to_rgb(image: Image.Image, file: object, depth: int, format: str) -> Image.Image:
    """Convert to mode RGB, with alpha and colour keys laid over white.

    image: the file's loaded pixels, all or a box of them.  file: may have a TIFF's tags, as `tag_v2`.
    depth: bits per sample in a PNG's header.
    Raises ImageError unsupported_mode.
    """
    key = image.info.get("transparency")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or (image.mode == "P" and key is not None):
        rgba = image.convert("RGBA")
        return _over_white(rgba, rgba.getchannel("A"))
    if image.mode in ("I;16", "I;16L", "I;16B"):
        values = np.asarray(image)
        grey: Image.Image = Image.fromarray((values >> _excess_bits(file)).astype(np.uint8))
        if tags_of(file).get(_PHOTOMETRIC) == 0:
            grey = Image.fromarray(255 - np.asarray(grey))
        return grey.convert("RGB") if key is None else _over_white(grey, _unlike(values, key))
    if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        raise ImageError("unsupported_mode", f"{format} pixels of mode {image.mode} have no documented 8-bit RGB")
    if key is not None and depth <= 8:
        scale = 255 // (2**depth - 1)
        levels = np.atleast_1d(key) % 2**depth * scale if image.mode != "1" else 255 * (np.atleast_1d(key) > 0)
        pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
        return _over_white(image, _unlike(pixels, levels))
    return image if image.mode == "RGB" else _keyless(image).convert("RGB")


def _keyless(image: Image.Image) -> Image.Image:
    """Remove the colour key, which Pillow would convert with a warning."""
    image.info.pop("transparency", None)
    return image


def _over_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    white.paste(_keyless(image).convert("RGB"), mask=alpha)
    return white


def _unlike(pixels: NDArray[Any], key: Any) -> Image.Image:
    """Return an alpha channel: 0 where a pixel equals the key in every channel, 255 elsewhere."""
    differs = pixels != key
    if pixels.ndim == 3:
        differs = differs.any(axis=2)
    return Image.fromarray(np.where(differs, 255, 0).astype(np.uint8))


def tags_of(file: object) -> Mapping[int, Any]:
    """Return the tags of a TIFF that conversion depends on. Other files have none."""
    tags = getattr(file, "tag_v2", {})
    return {tag: tags[tag] for tag in (_BITS_PER_SAMPLE, _PHOTOMETRIC) if tag in tags}


def _excess_bits(file: object) -> int:
    return max(0, int(tags_of(file).get(_BITS_PER_SAMPLE, (16,))[0]) - 8)


class PillowWarnings:
    """A stand-in for the module `warnings` inside Pillow's readers. Logs warnings while this thread decodes.

    warnings.catch_warnings would replace the filters of the whole process, and is not thread-safe before Python 3.14.
    Pillow warns only about metadata and its own pixel limit, and raises exceptions for damaged pixels. Outside a `kept`
    block, warnings work as usual.
    """

    def __init__(self) -> None:
        self._thread = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Log this thread's Pillow warnings instead of issuing them."""
        self._thread.keeping = True
        try:
            yield
        finally:
            self._thread.keeping = False

    def warn(
        self, message: Any, category: type[Warning] | None = None, stacklevel: int = 1, *rest: Any, **named: Any
    ) -> None:
        if getattr(self._thread, "keeping", False):
            LOG.debug("Pillow: %s", message)
        else:
            warnings.warn(message, category, stacklevel + 1, *rest, **named)


PILLOW_WARNINGS = PillowWarnings()
for _module in (Image, PngImagePlugin, TiffImagePlugin, JpegImagePlugin):
    vars(_module)["warnings"] = PILLOW_WARNINGS

"""Pillow's pixel layouts -> 8-bit RGB, pixel by pixel, as the decode policy in mdmf_deploy.images.decode says."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from mdmf_deploy.errors import ImageError

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262


def to_rgb(image: Image.Image, file: ImageFile.ImageFile, depth: int, format: str) -> Image.Image:
    """Mode RGB, alpha and colour keys laid over white.

    image: loaded pixels of the file, all or a box of them.  depth: bits a sample of a PNG, as its header has them.
    Raises ImageError unsupported_mode.
    """
    key = image.info.get("transparency")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or (image.mode == "P" and key is not None):
        rgba = image.convert("RGBA")
        return _over_white(rgba, rgba.getchannel("A"))
    if image.mode in ("I;16", "I;16L", "I;16B"):
        values = np.asarray(image)
        grey: Image.Image = Image.fromarray((values >> _excess_bits(file)).astype(np.uint8))
        if isinstance(file, TiffImagePlugin.TiffImageFile) and file.tag_v2.get(_PHOTOMETRIC) == 0:
            grey = Image.fromarray(255 - np.asarray(grey))
        return grey.convert("RGB") if key is None else _over_white(grey, _unlike(values, key))
    if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        raise ImageError("unsupported_mode", f"{format} pixels of mode {image.mode} have no documented 8-bit RGB")
    if key is not None and depth <= 8:
        scale = 255 // (2**depth - 1)
        levels = np.atleast_1d(key) % 2**depth * scale if image.mode != "1" else 255 * (np.atleast_1d(key) > 0)
        pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
        return _over_white(image, _unlike(pixels, levels))
    return image if image.mode == "RGB" else _bare(image).convert("RGB")


def _bare(image: Image.Image) -> Image.Image:
    """Without a colour key, which Pillow would carry over, warning as it does."""
    image.info.pop("transparency", None)
    return image


def _over_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    white.paste(_bare(image).convert("RGB"), mask=alpha)
    return white


def _unlike(pixels: NDArray[Any], key: Any) -> Image.Image:
    """Alpha: 0 where a pixel is the key in every channel, 255 elsewhere."""
    differs = pixels != key
    if pixels.ndim == 3:
        differs = differs.any(axis=2)
    return Image.fromarray(np.where(differs, 255, 0).astype(np.uint8))


def _excess_bits(file: ImageFile.ImageFile) -> int:
    tags = getattr(file, "tag_v2", {})
    return max(0, int(tags.get(_BITS_PER_SAMPLE, (16,))[0]) - 8)

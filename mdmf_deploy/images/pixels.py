"""Pixels that are in memory already, NumPy arrays and Pillow images, to 8-bit RGB by the decode policy (decode.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.crops import Pixels
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.images.rgb import PILLOW_WARNINGS, TURNS, orientation_of, tags_of, to_rgb

Colour = Literal["rgb", "bgr"]
"""The order of an array's channels. OpenCV's is "bgr"."""


def rgb_of_array(pixels: NDArray[Any], name: str, colour: Colour = "rgb") -> Pixels:
    """Return (H, W, 3) of uint8 pixels: grey (H, W), colour (H, W, 3), or colour and alpha (H, W, 4), laid over white.

    Raises ImageError unsupported_mode for another type or shape, and empty for no pixels.
    """
    shape = pixels.shape
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] in (3, 4))):
        raise ImageError(
            "unsupported_mode",
            f"{name} is {pixels.dtype} of shape {shape}; expected uint8 of shape (H, W), (H, W, 3) or (H, W, 4); "
            f"{_remedy(pixels)}",
        )
    if pixels.size == 0:
        raise ImageError("empty", f"{name} has shape {shape}: it holds no pixels")
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if colour == "bgr":
        pixels = pixels[..., [2, 1, 0, 3][: shape[2]]]
    if shape[2] == 3:
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(to_rgb(image, image, 8, "array"))


def own(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return a copy that lies in memory as the array does, so that most are copied as one block.

    NumPy alone is ten times slower with an axis that runs backwards, as in bgr[..., ::-1].
    """
    forward = tuple(slice(None, None, -1 if stride < 0 else None) for stride in pixels.strides)
    return np.array(pixels[forward])[forward]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A Pillow image as it was when it was taken, whatever the caller does with it later.

    image: a copy.  orientation: as its EXIF says, 1 to 8.  tag_v2: of a TIFF, as `to_rgb` needs them.
    """

    image: Image.Image
    orientation: int
    tag_v2: Mapping[int, Any]

    def rgb(self, name: str) -> Pixels:
        """Return (H, W, 3), upright.

        Raises ImageError unsupported_mode, and empty for no pixels. To be called once, because a colour key is dropped.
        """
        if 0 in self.image.size:
            raise ImageError("empty", f"{name} has {self.image.width} x {self.image.height} pixels")
        with PILLOW_WARNINGS.kept():
            rgb = to_rgb(self.image, self, 8, name)
            turn = TURNS.get(self.orientation)
            return np.asarray(rgb if turn is None else rgb.transpose(turn))


def snapshot(image: Image.Image, name: str, limits: ReadLimits) -> Snapshot:
    """Copy an image that Pillow has opened. Its pixels are read now, if they have not been.

    Raises ImageError too_many_pixels, truncated or corrupt.
    """
    if image.width * image.height > limits.max_pixels:
        raise ImageError(
            "too_many_pixels",
            f"{name} of {image.width} x {image.height} pixels is larger than the {limits.max_pixels} allowed",
        )
    try:
        with PILLOW_WARNINGS.kept():
            image.load()
            return Snapshot(image.copy(), orientation_of(image), tags_of(image))
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageError("too_many_pixels", f"{name}: its pixels do not fit into memory") from error
    except Exception as error:  # a damaged file raises almost anything, and so does one that is closed
        text = " ".join(str(error).split())[:200] or type(error).__name__
        code = "truncated" if "truncated" in text.lower() else "corrupt"
        raise ImageError(code, f"{name}: its pixels cannot be read ({text})") from error


def _remedy(pixels: NDArray[Any]) -> str:
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] > 4:
        return "move the channels last: a.transpose(1, 2, 0)"
    if pixels.ndim == 4:
        return "give its images one by one: list(a)"
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        return "leave out the last axis: a[..., 0]"
    if np.issubdtype(pixels.dtype, np.floating):
        return "if its values are 0 to 1: (255 * a).round().astype('uint8')"
    if pixels.dtype == np.uint16:
        return "if its values are 0 to 65535: (a >> 8).astype('uint8')"
    if pixels.dtype == bool:
        return "255 * a.astype('uint8')"
    return "convert it"

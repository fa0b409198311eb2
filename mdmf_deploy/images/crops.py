"""uint8 RGB to square crops at the image's own scale, and on to the model's float32 input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.errors import ShapeMismatch, UsageError

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""left, top, right, bottom, in pixels. Right and bottom are exclusive."""


@dataclass(frozen=True, slots=True)
class Crop:
    """The square crops of one image.

    pixels: (n, size, size, 3) uint8, in memory of their own.
    kind: "center", "reflected" (the image is smaller than a square), or "center+N" (N squares beside the central one).
    """

    pixels: Pixels
    kind: str


def boxes(height: int, width: int, size: int, count: int = 1) -> list[Box]:
    """Place 1 to `count` squares in an image, the central one first. `squares` makes a crop of their pixels.

    An image smaller than a square has one box: the part of the central square that the image fills. The smaller half of
    an odd margin lies above and to the left. Each further square is the one farthest from those taken, by the distance
    of their corners, on a grid of 33 x 33 places that reaches every edge. Ties go to the uppermost, then the leftmost
    place, so the first five squares of a large image are the centre and the corners. Placing stops early when every
    further square would lie closer than a third of a side to one already taken.
    Raises ShapeMismatch if size is less than 1, and UsageError if count is.
    """
    if size < 1:
        raise ShapeMismatch(f"a crop must have at least 1 pixel a side, got {size}")
    if count < 1:
        raise UsageError(f"crops must be at least 1, got {count}")
    top, left = (height - size) // 2, (width - size) // 2
    if count == 1 or min(height, width) < size:
        return [(max(0, left), max(0, top), min(width, left + size), min(height, top + size))]
    steps = np.arange(33)
    grid = np.stack(
        np.meshgrid(np.unique(steps * (height - size) // 32), np.unique(steps * (width - size) // 32), indexing="ij"),
        axis=-1,
    ).reshape(-1, 2)
    taken = [np.array([top, left])]
    nearest = ((grid - taken[0]) ** 2).sum(axis=1)
    while len(taken) < count:
        best = int(nearest.argmax())
        if 9 * nearest[best] < size**2:
            break
        taken.append(grid[best])
        nearest = np.minimum(nearest, ((grid - grid[best]) ** 2).sum(axis=1))
    return [(int(left), int(top), int(left) + size, int(top) + size) for top, left in taken]


def squares(parts: Sequence[Pixels], size: int) -> Crop:
    """Make a crop of the pixels of an image's `boxes`, (h, w, 3) each.

    A single part that is smaller than a square is mirrored at the image's edges, without repeating them ("reflect" of
    numpy.pad), as often as needed. The kind is then "reflected".
    """
    if len(parts) > 1:
        return Crop(np.stack(parts), f"center+{len(parts) - 1}")
    [part] = parts
    height, width = part.shape[:2]
    if height == width == size:
        return Crop(part[None].copy(), "center")
    rows, columns = (_mirrored((side - size) // 2, size, side) for side in (height, width))
    return Crop(part.take(rows, axis=0).take(columns, axis=1)[None], "reflected")


def center_crop(pixels: Pixels, size: int) -> Crop:
    """Cut the central size x size square from (H, W, 3), mirrored where the image is smaller."""
    return crops(pixels, size, 1)


def crops(pixels: Pixels, size: int, count: int) -> Crop:
    """Cut 1 to `count` squares from (H, W, 3) uint8, the central one first, as `boxes` places them.

    Raises ShapeMismatch if `pixels` is not such an array.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ShapeMismatch(f"pixels must be (H, W, 3) uint8 and not empty, got {pixels.shape} {pixels.dtype}")
    placed = boxes(pixels.shape[0], pixels.shape[1], size, count)
    return squares([pixels[top:bottom, left:right] for left, top, right, bottom in placed], size)


def normalise(crops: Pixels, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turn (B, S, S, 3) uint8 into (B, 3, S, S) float32: (pixel / 255 - mean) / std in float64, rounded once.

    Raises ShapeMismatch if `crops` is not such an array.
    """
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[3] != 3:
        raise ShapeMismatch(f"crops must be (B, S, S, 3) uint8, got {crops.shape} {crops.dtype}")
    out = np.empty((crops.shape[0], 3, *crops.shape[1:3]), np.float32)
    tables = _table(preprocessing.mean, preprocessing.std)
    # One image at a time stays in the cache. A table costs as much as a multiply-add and rounds the same everywhere.
    for image, planes in zip(crops, out, strict=True):
        for channel in range(3):
            np.take(tables[channel], image[..., channel], out=planes[channel], mode="clip")
    return out


@lru_cache(maxsize=8)
def _table(mean: tuple[float, float, float], std: tuple[float, float, float]) -> NDArray[np.float32]:
    """Return (3, 256): the normalised value of every level of every channel."""
    levels = np.arange(256) / 255
    return np.stack([(levels - m) / s for m, s in zip(mean, std, strict=True)]).astype(np.float32)


def _mirrored(start: int, count: int, length: int) -> NDArray[np.intp]:
    """Return the indices start, ..., start + count - 1, folded back into 0, ..., length - 1."""
    period = max(1, 2 * (length - 1))
    folded = np.arange(start, start + count) % period
    return np.minimum(folded, period - folded) if length > 1 else folded

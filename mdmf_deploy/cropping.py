"""uint8 RGB -> square crops at the image's own scale -> float32 input of the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import ShapeMismatch, UsageError
from mdmf_deploy.recipe import Preprocessing

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Crop:
    """pixels: (n, size, size, 3), own memory.  kind: "center", "reflected", "center+N" (N beside the centre)."""

    pixels: Pixels
    kind: str


def center_crop(pixels: Pixels, size: int) -> Crop:
    """(H, W, 3) -> the central size x size square, at the image's own scale.

    Where the image is smaller it is mirrored at its edges, without repeating them ("reflect" of numpy.pad), as often as
    needed; kind is then "reflected". Of an odd margin the smaller half lies above and to the left.
    """
    _check_pixels(pixels, size)
    height, width = pixels.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    if min(height, width) >= size:
        return Crop(pixels[None, top : top + size, left : left + size].copy(), "center")
    rows, columns = _mirrored(top, size, height), _mirrored(left, size, width)
    return Crop(pixels[rows[:, None], columns][None], "reflected")


def crops(pixels: Pixels, size: int, count: int) -> Crop:
    """(H, W, 3) -> (n, size, size, 3), 1 <= n <= count: the central square, then the ones farthest from those taken.

    Farthest: by the distance of their corners, over a grid of 33 x 33 places that reaches every edge; ties go to the
    uppermost, then the leftmost, so on a large image the first five are the centre and the corners. Fewer than `count`
    where every further square would lie closer than a third of a side to one already taken. kind: "center+N" for N
    squares beside the central one, else center_crop's.
    """
    if count < 1:
        raise UsageError(f"crops must be at least 1, got {count}")
    first = center_crop(pixels, size)
    height, width = pixels.shape[:2]
    if first.kind == "reflected" or count == 1:
        return first
    steps = np.arange(33)
    grid = np.stack(
        np.meshgrid(np.unique(steps * (height - size) // 32), np.unique(steps * (width - size) // 32), indexing="ij"),
        axis=-1,
    ).reshape(-1, 2)
    taken = [np.array([(height - size) // 2, (width - size) // 2])]
    nearest = ((grid - taken[0]) ** 2).sum(axis=1)
    while len(taken) < count:
        best = int(nearest.argmax())
        if 9 * nearest[best] < size**2:
            break
        taken.append(grid[best])
        nearest = np.minimum(nearest, ((grid - grid[best]) ** 2).sum(axis=1))
    if len(taken) == 1:
        return first
    squares = np.stack([pixels[top : top + size, left : left + size] for top, left in taken])
    return Crop(squares, f"center+{len(taken) - 1}")


def normalise(crops: Pixels, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32: (pixel / 255 - mean) / std, computed in float64, rounded once."""
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[3] != 3:
        raise ShapeMismatch(f"crops must be (B, S, S, 3) uint8, got {crops.shape} {crops.dtype}")
    out = np.empty((crops.shape[0], 3, *crops.shape[1:3]), np.float32)
    tables = _table(preprocessing.mean, preprocessing.std)
    # One image at a time stays in the cache; a table costs as much as a multiply-add, and rounds the same everywhere.
    for image, planes in zip(crops, out, strict=True):
        for channel in range(3):
            np.take(tables[channel], image[..., channel], out=planes[channel], mode="clip")
    return out


@lru_cache(maxsize=8)
def _table(mean: tuple[float, float, float], std: tuple[float, float, float]) -> NDArray[np.float32]:
    """(3, 256): every value a channel can take."""
    levels = np.arange(256) / 255
    return np.stack([(levels - m) / s for m, s in zip(mean, std, strict=True)]).astype(np.float32)


def _mirrored(start: int, count: int, length: int) -> NDArray[np.intp]:
    """Indices start, ..., start + count - 1, folded back into 0 ... length - 1."""
    period = max(1, 2 * (length - 1))
    folded = np.arange(start, start + count) % period
    return np.minimum(folded, period - folded) if length > 1 else folded


def _check_pixels(pixels: Pixels, size: int) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ShapeMismatch(f"pixels must be (H, W, 3) uint8 and not empty, got {pixels.shape} {pixels.dtype}")
    if size < 1:
        raise ShapeMismatch(f"a crop must have at least 1 pixel a side, got {size}")

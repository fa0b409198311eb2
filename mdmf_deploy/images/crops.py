"""uint8 RGB to square crops at the image's own scale, and on to the model's float32 input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
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

    pixels: (n, size, size, 3) uint8, in memory of their own, row by row of their grid.
    kind: "center", "reflected" (the image is smaller than a square), or "grid RxC" (R rows of C squares).
    """

    pixels: Pixels
    kind: str


def grid(height: int, width: int, size: int, count: int = 1) -> tuple[int, int]:
    """Return the rows and columns of squares that an image gets: the most, but at most `count`.

    A side holds k places if they can lie half a square apart, so from size (k + 1) / 2 pixels on. Among grids with
    equally many squares, the one whose shape is nearest to the image's wins, and then the one with fewer rows. An image
    smaller than a square gets one.
    Raises ShapeMismatch if size is less than 1, and UsageError if count is.
    """
    if size < 1:
        raise ShapeMismatch(f"a crop must have at least 1 pixel a side, got {size}")
    if count < 1:
        raise UsageError(f"crops must be at least 1, got {count}")
    if min(height, width) < size:
        return 1, 1
    most_rows, most_columns = (min(count, 2 * side // size - 1) for side in (height, width))
    # For a number of rows, only the most columns can win.
    shapes = [(rows, min(most_columns, count // rows)) for rows in range(1, most_rows + 1)]

    def rank(shape: tuple[int, int]) -> tuple[int, Fraction, int]:
        rows, columns = shape
        sides = rows * width, columns * height
        return -rows * columns, Fraction(max(sides), min(sides)), rows

    return min(shapes, key=rank)


def boxes(height: int, width: int, size: int, count: int = 1) -> list[Box]:
    """Place the squares of an image's `grid` in it, row by row. `squares` makes a crop of their pixels.

    Each square lies in the middle of its cell, where the image is large enough to be divided into cells that hold one.
    Otherwise squares overlap, evenly, from edge to edge. Positions are rounded down, so one square has the smaller half
    of an odd margin above it and to its left. An image smaller than a square has one box: the part of the central
    square that the image fills. Any count from the number of squares up to the one asked for gives the same boxes.
    Raises ShapeMismatch if size is less than 1, and UsageError if count is.
    """
    rows, columns = grid(height, width, size, count)
    return [
        (max(0, left), max(0, top), min(width, left + size), min(height, top + size))
        for top in _starts(height, size, rows)
        for left in _starts(width, size, columns)
    ]


def squares(parts: Sequence[Pixels], size: int, shape: tuple[int, int] = (1, 1)) -> Crop:
    """Make a crop of the pixels of an image's `boxes`, (h, w, 3) each.

    A single part that is smaller than a square is mirrored at the image's edges, without repeating them ("reflect" of
    numpy.pad), as often as needed. The kind is then "reflected".

    shape: rows and columns, as `grid` returns them.
    Raises ShapeMismatch if there are not as many parts as the shape says.
    """
    if len(parts) != shape[0] * shape[1]:
        raise ShapeMismatch(f"a grid of {shape[0]} x {shape[1]} squares needs as many parts, got {len(parts)}")
    if len(parts) > 1:
        return Crop(np.stack(parts), f"grid {shape[0]}x{shape[1]}")
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
    """Cut 1 to `count` squares from (H, W, 3) uint8, as `boxes` places them.

    Raises ShapeMismatch if `pixels` is not such an array.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ShapeMismatch(f"pixels must be (H, W, 3) uint8 and not empty, got {pixels.shape} {pixels.dtype}")
    height, width = pixels.shape[:2]
    parts = [pixels[top:bottom, left:right] for left, top, right, bottom in boxes(height, width, size, count)]
    return squares(parts, size, grid(height, width, size, count))


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


def _starts(side: int, size: int, count: int) -> list[int]:
    """Return where `count` squares begin along a side. A single one may begin before the side does."""
    if count == 1 or side >= count * size:
        return [((2 * place + 1) * side - count * size) // (2 * count) for place in range(count)]
    return [place * (side - size) // (count - 1) for place in range(count)]


def _mirrored(start: int, count: int, length: int) -> NDArray[np.intp]:
    """Return the indices start, ..., start + count - 1, folded back into 0, ..., length - 1."""
    period = max(1, 2 * (length - 1))
    folded = np.arange(start, start + count) % period
    return np.minimum(folded, period - folded) if length > 1 else folded

"""How much of an image there is to judge: the share of its patches that have a texture.

A detector of generated images reads texture. Where there is none, its score means nothing, however high it is.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import ShapeMismatch
from mdmf_deploy.images.crops import Pixels

PATCH = 14
"""Pixels a side of a patch, as in the backbones."""

# Levels of 0 to 255. Chosen on photographs, art, screenshots and drawn pages (docs/calibration.md).
_NOISE = 3.5
_TWO_TONE = 0.35
_PAPER = 0.2
_PAPER_LEVELS = 10
# A patch's extremes leave out this many of its 196 pixels on either side.
_STRAY = 4


def evidence(crops: Pixels) -> float:
    """Return the share, 0 to 1, of the patches of 14 x 14 pixels in an image's crops, (k, S, S, 3) uint8, with texture.

    A patch has texture if both hold:
    - its luminance, averaged over 2 x 2 pixels, deviates by more than 3.5 levels (root mean square) from the plane that
      fits it best. Gradients are planes. The noise of sensors and codecs is averaged away or smaller.
    - it is not ink on paper. In a patch of text more than 35% of the pixels lie near the brightest level or near the
      darkest (within a fifth of their distance), and more than 20% lie within 10 levels of the crop's paper. That is
      its commonest level once a plane of light is taken off.

    A crop's pixels beyond its last whole patch are ignored, evenly on all sides. All sums are exact, so that every
    machine returns the same number.
    Raises ShapeMismatch unless `crops` is such an array, with k >= 1 and S >= 14.
    """
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[3] != 3 or 0 in crops.shape:
        raise ShapeMismatch(f"crops must be (k, S, S, 3) uint8 and not empty, got {crops.shape} {crops.dtype}")
    if min(crops.shape[1:3]) < PATCH or crops.shape[1] != crops.shape[2]:
        raise ShapeMismatch(f"crops must be squares of {PATCH} pixels a side or more, got {crops.shape[1:3]}")
    return float(np.mean([_textured(_patches(crop)) for crop in crops]))


def _patches(crop: Pixels) -> NDArray[np.uint8]:
    """Return the luminance of a crop's whole patches, (n * n, 14, 14), row-major. BT.601 in 8-bit integers."""
    n = len(crop) // PATCH
    start, side = (len(crop) - n * PATCH) // 2, n * PATCH
    red, green, blue = (crop[start : start + side, start : start + side, c].astype(np.uint16) for c in range(3))
    luminance = ((77 * red + 150 * green + 29 * blue) >> 8).astype(np.uint8)
    return luminance.reshape(n, PATCH, n, PATCH).transpose(0, 2, 1, 3).reshape(n * n, PATCH, PATCH)


def _textured(patches: NDArray[np.uint8]) -> float:
    return float(np.mean(_rough(patches) & ~_ink_on_paper(patches.reshape(len(patches), -1))))


def _rough(patches: NDArray[np.uint8]) -> NDArray[np.bool_]:
    wide = patches.astype(np.uint16)
    pairs = wide[:, ::2] + wide[:, 1::2]
    fours = (pairs[:, :, ::2] + pairs[:, :, 1::2]).reshape(len(patches), -1).astype(np.float64)
    basis, norms = _plane_basis(PATCH // 2)
    left = np.einsum("mp,mp->m", fours, fours) - (np.einsum("mp,kp->mk", fours, basis) ** 2 / norms).sum(axis=1)
    # `fours` holds sums of four pixels.
    return np.asarray(left > fours.shape[1] * (4 * _NOISE) ** 2)


def _ink_on_paper(patches: NDArray[np.uint8]) -> NDArray[np.bool_]:
    size = patches.shape[1]
    # A stable sort of bytes is a radix sort, which is several times faster than partitioning.
    ordered = np.sort(patches, axis=1, kind="stable")
    darkest, brightest = ordered[:, _STRAY, None], ordered[:, -1 - _STRAY, None]
    near = (brightest - darkest) // 5
    tones = np.maximum(_counts(patches >= brightest - near), _counts(patches <= darkest + near))
    unlit = patches - _light(ordered[:, size // 2])[:, None]
    levels = unlit - unlit.min()
    frequencies = np.bincount(levels.ravel())
    # Entry n of the full convolution ends at level n, so it is centred on level n - _PAPER_LEVELS.
    around = np.convolve(frequencies, np.ones(2 * _PAPER_LEVELS + 1, np.int64))
    commonest = int(around[_PAPER_LEVELS:-_PAPER_LEVELS].argmax())
    paper = _counts(np.abs(levels - commonest) <= _PAPER_LEVELS)
    return np.asarray((tones > _TWO_TONE * size) & (paper > _PAPER * size))


def _counts(chosen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Count the chosen pixels of each patch. There are at most 196, so that a byte holds their number."""
    return np.asarray(chosen.view(np.uint8).sum(axis=1, dtype=np.uint8))


def _light(medians: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return the plane, in whole levels, of the light on a page, given the median level of each of its patches."""
    side = round(len(medians) ** 0.5)
    levels = medians.astype(np.int32).reshape(side, side)
    plane = _fitted(levels)
    # Patches that are mostly ink or picture lie far off. Leave them out of a second fit.
    off = np.abs(levels - plane)
    return _fitted(np.where(off <= 2 * np.median(off) + 1, levels, plane)).reshape(-1).astype(np.int16)


def _fitted(levels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the plane that fits (n, n) levels best, rounded to whole levels."""
    basis, norms = _plane_basis(len(levels))
    mean, down, across = np.einsum("p,kp->k", levels.reshape(-1), basis) / norms
    steps = _steps(len(levels))
    return np.asarray(np.rint(mean + down * steps[:, None] + across * steps), np.int32)


@lru_cache(maxsize=8)
def _plane_basis(side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the orthogonal parts of a plane over a square, (3, side * side): level, down, across.

    Also returns the squares of their norms, (3,). All entries are whole numbers, so that every sum is exact. Use it
    without BLAS: in the threads that decode, OpenBLAS would end the process if it got no memory for a buffer.
    """
    steps = _steps(side)
    basis = np.stack([np.ones(side * side), np.repeat(steps, side), np.tile(steps, side)])
    return basis, np.maximum((basis**2).sum(axis=1), 1.0)


def _steps(side: int) -> NDArray[np.float64]:
    """Return `side` places around 0, two apart."""
    return np.arange(1.0 - side, side, 2.0)

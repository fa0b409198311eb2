"""The quantisation tables of a JPEG, the quality that they stand for, and its chroma subsampling.

The Independent JPEG Group's library (libjpeg, and so Pillow and most programs) scales the two tables of ITU-T T.81,
annex K, by a quality of 1 to 100. Cameras and other programs have tables of their own.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.images.containers.jpeg import Jpeg

STANDARD = "standard"
"""The class of tables that are exactly those of libjpeg at some quality."""

_DQT, _SOI = 0xDB, 2
# Foreign tables are at most this far from the nearest standard ones, on average and relative to their mean entry, if
# they are to have a quality.
_NEAR = 0.1

# ITU-T T.81, annex K, tables K.1 and K.2, row by row.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66,
    *(99,) * 38,
)  # fmt: skip

_NAMES = {
    ((1, 1), (1, 1)): "4:4:4",
    ((2, 1), (1, 1)): "4:2:2",
    ((2, 2), (1, 1)): "4:2:0",
    ((1, 2), (1, 1)): "4:4:0",
    ((4, 1), (1, 1)): "4:1:1",
    ((4, 2), (1, 1)): "4:1:0",
}


def tables_of(jpeg: Jpeg) -> tuple[tuple[int, ...], ...]:
    """Return the quantisation table of each component that has one, 64 entries each, row by row.

    Tables behind the beginning of the first scan, which progressive files may have, are not looked at.
    """
    defined = _defined(jpeg.data[: jpeg.scans[0].start])
    # The frame header has a selector for each component (T.81, B.2.2).
    at = jpeg.frame + 8
    selectors = [jpeg.data[at + 3 * n + 2] for n in range(len(jpeg.sampling))]
    return tuple(defined[selector] for selector in selectors if selector in defined)


def quality_of(tables: tuple[tuple[int, ...], ...]) -> int | None:
    """Return the quality, 1 to 100, whose standard tables differ least from these, in the sum of absolute differences.

    tables: as tables_of returns them.
    Returns None for no tables, and for tables that differ from the nearest standard ones by more than a tenth of their
    mean entry, on average. They are no scaling of the standard ones.
    """
    if not tables:
        return None
    distances = _distances(tables)
    best = int(distances.argmin())
    if distances[best] > _NEAR * _clipped(tables).sum():
        return None
    return best + 1


def class_of(tables: tuple[tuple[int, ...], ...]) -> str:
    """Return STANDARD for libjpeg's tables at any quality, else 8 hexadecimal digits that name these tables."""
    if tables and _distances(tables).min() == 0:
        return STANDARD
    return hashlib.sha256(repr(tables).encode()).hexdigest()[:8]


def subsampling_of(jpeg: Jpeg) -> str:
    """Return the chroma subsampling, such as "4:2:0".

    Returns "grey" for one component, and for rare layouts each component's factors, such as "2x2 1x1 2x1".
    """
    factors = tuple(jpeg.sampling.values())
    if len(factors) == 1:
        return "grey"
    if len(factors) == 3 and factors[1] == factors[2] and factors[:2] in _NAMES:
        return _NAMES[factors[0], factors[1]]
    return " ".join(f"{across}x{down}" for across, down in factors)


def _defined(head: bytes) -> dict[int, tuple[int, ...]]:
    """Return the tables that the segments of a parsed JPEG define, by their number. The last definition counts."""
    found: dict[int, tuple[int, ...]] = {}
    at = _SOI
    while at + 4 <= len(head):
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4])
        if marker == _DQT:
            found |= _in_segment(head[at + 4 : at + 2 + length])
        at += 2 + length
    return found


def _in_segment(body: bytes) -> dict[int, tuple[int, ...]]:
    """Return the tables in one DQT segment (T.81, B.2.4.1)."""
    found, at = {}, 0
    while at < len(body):
        wide, number = body[at] >> 4, body[at] & 15
        size = 128 if wide else 64
        if at + 1 + size > len(body):
            break
        entries = np.frombuffer(body, ">u2" if wide else "u1", 64, at + 1)
        rows = np.empty(64, np.int64)
        rows[_zigzag()] = entries
        found[number] = tuple(map(int, rows))
        at += 1 + size
    return found


@lru_cache(maxsize=1)
def _zigzag() -> NDArray[np.intp]:
    """Return where in a table, row by row, each entry of the zigzag order belongs (T.81, figure A.6)."""
    row, column = np.divmod(np.arange(64), 8)
    diagonal = row + column
    # Odd diagonals run downwards, even ones upwards.
    return np.lexsort((np.where(diagonal % 2, row, column), diagonal))


@lru_cache(maxsize=256)
def _distances(tables: tuple[tuple[int, ...], ...]) -> NDArray[np.int64]:
    """Return the sum of absolute differences to the standard tables at each quality, (100,).

    Each table counts with the nearer one of the two, because all components of CMYK use the first.
    """
    differences = np.abs(_standard()[:, :, None] - _clipped(tables)).sum(axis=3)
    return np.asarray(differences.min(axis=1).sum(axis=1))


def _clipped(tables: tuple[tuple[int, ...], ...]) -> NDArray[np.int64]:
    """Return the tables, (n, 64), limited to 8 bits, because some programs write more at the lowest qualities."""
    return np.minimum(np.array(tables, np.int64), 255)


@lru_cache(maxsize=1)
def _standard() -> NDArray[np.int64]:
    """Return libjpeg's tables (jpeg_set_quality, in 8 bits) for the qualities 1 to 100: (100, 2, 64)."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)[:, None, None]
    return np.clip((np.array([_LUMINANCE, _CHROMINANCE], np.int64) * scale + 50) // 100, 1, 255)

"""The images that are timed: the user's, or ones made here that are as expensive to decode as photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdmf_deploy.bundle.probe_images import COUNT, probe_crops
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images import decode
from mdmf_deploy.tasks.benchmark.results import ImageSet

SIZES = {"0.5 MP": (816, 612, COUNT), "12 MP": (4000, 3000, 3)}  # width, height, number of images
MOST = 256  # each is decoded before the first measurement, and again for the verdicts
_TILE = 256
_QUALITY = 90
_GENERATED = f"generated: JPEGs of quality {_QUALITY}, tiled of the probe images"


@dataclass(frozen=True, slots=True)
class ImageSample:
    """One or more readable images and their description."""

    paths: tuple[Path, ...]
    about: ImageSet


def given(paths: Sequence[Path], most: int = MOST) -> ImageSample:
    """Choose at most `most` of the user's images, and return those that can be read.

    Raises UsageError if there is none.
    """
    readable, sizes = [], []
    reason = "no input"
    chosen = evenly_spaced(paths, most)
    for path in chosen:
        try:
            decoded = decode.decode(decode.read(path))
        except ImageError as error:
            reason = str(error)
            continue
        readable.append(path)
        sizes.append(decoded.width * decoded.height / 1e6)
    if not readable:
        raise UsageError(
            f"--images: none of {len(chosen)} inputs tried is a readable image ({reason}); "
            "give photographs, or leave --images out to use generated ones"
        )
    return _sample("given", "the files of --images", readable, sizes, len(chosen) - len(readable), len(paths))


def evenly_spaced(paths: Sequence[Path], most: int = MOST) -> list[Path]:
    """Choose at most `most` paths, ordered so that any first few are spread over all.

    A short run takes only the first few.
    """
    count = min(len(paths), most)
    bits = (most - 1).bit_length()
    order = sorted(range(count), key=lambda n: f"{n:0{bits}b}"[::-1])
    return [paths[n * len(paths) // count] for n in order]


def generated(folder: Path) -> list[ImageSample]:
    """Write a sample of each of SIZES to the folder. The pixels are the same on every machine."""
    tiles = probe_crops(_TILE)
    samples = []
    for name, (width, height, count) in SIZES.items():
        own = folder / name.replace(" ", "")
        own.mkdir()
        paths = []
        for index in range(count):
            paths.append(own / f"{index:02}.jpg")
            Image.fromarray(mosaic(tiles, index, width, height)).save(paths[-1], quality=_QUALITY)
        samples.append(_sample(name, _GENERATED, paths, [width * height / 1e6] * count, 0, count))
    return samples


def mosaic(tiles: NDArray[np.uint8], first: int, width: int, height: int) -> NDArray[np.uint8]:
    """Lay tiles (n, 256, 256, 3) side by side into an image (height, width, 3).

    Tile `first` lies whole in the middle, where the crop is taken.
    """
    rows, columns = (2 * (-(-(length - _TILE) // (2 * _TILE))) + 1 for length in (height, width))
    middle = rows * columns // 2
    order = (np.arange(rows * columns) - middle + first) % len(tiles)
    whole = tiles[order].reshape(rows, columns, _TILE, _TILE, 3).swapaxes(1, 2).reshape(rows * _TILE, -1, 3)
    top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
    return np.ascontiguousarray(whole[top : top + height, left : left + width])


def _sample(
    name: str, origin: str, paths: Sequence[Path], sizes: Sequence[float], unreadable: int, given: int
) -> ImageSample:
    about = ImageSet(
        name=name,
        origin=origin,
        generated=origin is _GENERATED,
        given=given,
        images=len(paths),
        unreadable=unreadable,
        megapixels=float(np.median(sizes)),
        kilobytes=float(np.median([path.stat().st_size for path in paths])) / 1e3,
    )
    return ImageSample(tuple(paths), about)

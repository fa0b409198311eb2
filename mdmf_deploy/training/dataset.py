"""The training data: which files, which part each belongs to, and random crops of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Part, Split, part_of
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images.decode import center_crop, decode, read

REAL = "real"


@dataclass(frozen=True, slots=True)
class Sample:
    """One file.  generator: None for a real photograph."""

    path: Path
    sha256: str
    generator: str | None
    part: Part


@dataclass(frozen=True, slots=True)
class Dataset:
    """samples: in path order.  unreadable: files left out, with their error codes."""

    samples: tuple[Sample, ...]
    unreadable: tuple[tuple[Path, str], ...]

    def of(self, part: Part, generated: bool) -> list[Sample]:
        """The part's samples of one class."""
        return [s for s in self.samples if s.part == part and (s.generator is not None) == generated]

    def hash(self) -> str:
        """One SHA-256 over all files, their parts and their order: what a resumed run must find unchanged."""
        lines = [f"{s.sha256} {s.generator} {s.part}" for s in self.samples]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def collect(real: Iterable[Path], generated: Mapping[str, Iterable[Path]], split: Split) -> Dataset:
    """Hash and split every file; copies count once.

    generated: generator name -> files.  Raises UsageError if a training or validation class comes out empty.
    """
    samples: dict[str, Sample] = {}
    unreadable = []
    for generator, paths in ((None, real), *generated.items()):
        for path in paths:
            try:
                data = read(path)
                decode(data)
            except ImageError as error:
                unreadable.append((path, error.code))
                continue
            sha256 = hashlib.sha256(data).hexdigest()
            samples.setdefault(sha256, Sample(path, sha256, generator, part_of(sha256, split, generator)))
    dataset = Dataset(tuple(samples.values()), tuple(unreadable))
    for part in ("train", "validation"):
        for is_generated in (False, True):
            if len(dataset.of(part, is_generated)) < 2:
                kind = "generated" if is_generated else "real"
                raise UsageError(f"training needs at least 2 {kind} images in the {part} part; give more images")
    return dataset


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` of them, evenly over the list, so that no source is left out for its place in it."""
    return [samples[index * len(samples) // count] for index in range(count)] if count < len(samples) else [*samples]


class PixelCache:
    """Decoded files, kept in memory up to a budget; the rest is decoded each time it is asked for.

    budget: bytes.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: dict[Path, NDArray[np.uint8]] = {}

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """(H, W, 3) of a file that has been read before; raises ImageError if it has since become unreadable."""
        pixels = self._kept.get(path)
        if pixels is None:
            pixels = decode(read(path)).pixels
            if pixels.nbytes <= self._budget:
                self._budget -= pixels.nbytes
                self._kept[path] = pixels
        return pixels


@dataclass(frozen=True, slots=True)
class Window:
    """A random crop, as fractions of the room an image leaves, so that both halves of a pair get the same one."""

    top: float
    left: float
    flip: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Window:
        top, left, flip = rng.random(3)
        return cls(float(top), float(left), bool(flip < 0.5))

    def cut(self, pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """(H, W, 3) -> (size, size, 3); an image smaller than the crop is mirrored at its right and lower edges."""
        height, width = pixels.shape[:2]
        if min(height, width) < size:
            pixels = _mirrored(pixels, size)
            height, width = pixels.shape[:2]
        top, left = int(self.top * (height - size + 1)), int(self.left * (width - size + 1))
        crop = pixels[top : top + size, left : left + size]
        return crop[:, ::-1] if self.flip else crop


def _mirrored(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    grow = ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0))
    return np.pad(pixels, grow, mode="reflect" if min(height, width) > 1 else "edge")


def center_crops(paths: Sequence[Path], size: int) -> NDArray[np.uint8]:
    """(n, size, size, 3), as detection crops them."""
    with ThreadPoolExecutor() as pool:
        crops = pool.map(lambda path: center_crop(decode(read(path)).pixels, size).pixels[0], paths)
        return np.stack(list(crops))

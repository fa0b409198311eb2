"""The training data: which files there are, of which source and kind, and which part each belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Part, Split, part_of, source_of
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images.crops import center_crop
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.tasks.train.phases import Count, Follow, ignore

Kind = Literal["photograph", "art", "screen", "generated"]


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One file, its source ("real/NAME" or "generated/NAME") and the part it belongs to."""

    path: Path
    sha256: str
    source: str
    part: Part

    @property
    def generator(self) -> str | None:
        """The name of the source of a generated image, None for a real one."""
        return self.source.removeprefix("generated/") if self.source.startswith("generated/") else None

    @property
    def kind(self) -> Kind:
        """The kind by the source's name: art, art_*, screen and screen_* among the real ones are no photographs."""
        if self.generator is not None:
            return "generated"
        name = self.source.removeprefix("real/").partition("_")[0]
        return "art" if name == "art" else "screen" if name == "screen" else "photograph"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Every image of a training run.

    images: in the order given, real ones first.
    unreadable: files left out, with their error codes.
    """

    images: tuple[LabelledImage, ...]
    unreadable: tuple[tuple[Path, str], ...]

    def of(self, part: Part, generated: bool) -> list[LabelledImage]:
        """Return the images of one part and class."""
        return [image for image in self.images if image.part == part and (image.generator is not None) == generated]

    def hash(self) -> str:
        """Return one SHA-256 over all files, their parts and their order. A resumed run must find it unchanged."""
        lines = [f"{image.sha256} {image.source} {image.part}" for image in self.images]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def collect(
    real: Sequence[Path], generated: Mapping[str, Sequence[Path]], split: Split, follow: Follow = ignore
) -> Dataset:
    """Hash every file and assign it to a part. Copies count once.

    generated: generator name -> files.
    Raises UsageError if a class has fewer than two images for training or for validation.
    """
    images: dict[str, LabelledImage] = {}
    unreadable = []
    count = Count("reading images", "images", len(real) + sum(map(len, generated.values())), follow)
    for generator, paths in ((None, real), *generated.items()):
        for path in count.over(paths):
            try:
                data = read(path)
                decode(data)
            except ImageError as error:
                unreadable.append((path, error.code))
                continue
            sha256 = hashlib.sha256(data).hexdigest()
            source = source_of(path, generator)
            images.setdefault(sha256, LabelledImage(path, sha256, source, part_of(sha256, split, source)))
    dataset = Dataset(tuple(images.values()), tuple(unreadable))
    for part in ("train", "validation"):
        for is_generated in (False, True):
            if len(dataset.of(part, is_generated)) < 2:
                kind = "generated" if is_generated else "real"
                raise UsageError(f"training needs at least 2 {kind} images in the {part} part; give more images")
    return dataset


def spread(images: Sequence[LabelledImage], count: int) -> list[LabelledImage]:
    """Pick at most `count` images, evenly over the list, so that every source is represented."""
    return [images[index * len(images) // count] for index in range(count)] if count < len(images) else [*images]


def center_crops(paths: Sequence[Path], size: int, count: Count | None = None) -> NDArray[np.uint8]:
    """Return the centre crops that detection would take, (n, size, size, 3).

    count: counts the images, if given.
    """
    with ThreadPoolExecutor() as pool:
        crops = pool.map(lambda path: center_crop(decode(read(path)).pixels, size).pixels[0], paths)
        return np.stack(list(crops if count is None else count.over(crops)))


class PixelCache:
    """Decode files, and keep their pixels in memory up to a budget in bytes. The rest is decoded on every call."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: dict[Path, NDArray[np.uint8]] = {}

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Return a file's pixels, (H, W, 3). Raises ImageError if it has become unreadable."""
        pixels = self._kept.get(path)
        if pixels is None:
            pixels = decode(read(path)).pixels
            if pixels.nbytes <= self._budget:
                self._budget -= pixels.nbytes
                self._kept[path] = pixels
        return pixels

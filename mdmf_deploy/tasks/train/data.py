"""The training data: which files, which part each belongs to, and random crops of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdmf_deploy.bundle.recipe import Part, Preprocessing, Split, part_of
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images.decode import center_crop, decode, normalise, read

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


@dataclass(frozen=True, slots=True)
class Batch:
    """real, generated: (n, ...) each, ready for the network: crops (n, 3, S, S) or features (n, N, C)."""

    real: Tensor
    generated: Tensor


class Batches(Protocol):
    """Where the loop gets its batches from."""

    def __call__(self, step: int) -> Batch: ...


@dataclass(frozen=True, slots=True)
class Photograph:
    """A real image's files: views[v] is aligned with reconstructions[v]; there are none without autoencoders."""

    original: Path
    views: tuple[Path, ...] = ()
    reconstructions: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Images:
    """The training part.  generated: generator -> one tuple of equivalent files (original and views) an image."""

    photographs: tuple[Photograph, ...]
    generated: dict[str, tuple[tuple[Path, ...], ...]]


class CropBatches:
    """Random crops with flips; a share of each class in aligned pairs, if there are reconstructions."""

    def __init__(
        self, images: Images, preprocessing: Preprocessing, batch: int, share: float, seed: int, cache: PixelCache
    ) -> None:
        self._images = images
        self._preprocessing = preprocessing
        self._batch = batch
        self._seed = seed
        self._cache = cache
        self._pairs = round(share * batch) if all(p.reconstructions for p in images.photographs) else 0
        self._pool = ThreadPoolExecutor(max_workers=2)

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng([self._seed, step])
        real: list[tuple[Path, Window]] = []
        generated: list[tuple[Path, Window]] = []
        for turn, photograph in enumerate(_choose(rng, self._images.photographs, self._batch)):
            window = Window.draw(rng)
            if turn < self._pairs:
                view = int(rng.integers(len(photograph.reconstructions)))
                real.append((photograph.views[view], window))
                generated.append((photograph.reconstructions[view], window))
            else:
                files = (photograph.original, *photograph.views)
                real.append((files[int(rng.integers(len(files)))], window))
        generators = sorted(self._images.generated)
        for turn in range(self._batch - self._pairs):
            # Generators take turns: a large one must not drown a small one.
            images = self._images.generated[generators[(step + turn) % len(generators)]]
            files = images[int(rng.integers(len(images)))]
            generated.append((files[int(rng.integers(len(files)))], Window.draw(rng)))
        return Batch(self._tensor(real), self._tensor(generated))

    def _tensor(self, chosen: Sequence[tuple[Path, Window]]) -> Tensor:
        size = self._preprocessing.crop
        crops = self._pool.map(lambda item: item[1].cut(self._cache(item[0]), size), chosen)
        return torch.from_numpy(normalise(np.stack(list(crops)), self._preprocessing))


class FeatureBatches:
    """Features of several random crops an image, computed once; one of them drawn each time."""

    def __init__(self, real: NDArray[np.float16], generated: NDArray[np.float16], batch: int, seed: int) -> None:
        """real, generated: (images, crops, N, C)."""
        self._real = real
        self._generated = generated
        self._batch = batch
        self._seed = seed

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng([self._seed, step])
        return Batch(self._draw(rng, self._real), self._draw(rng, self._generated))

    def _draw(self, rng: np.random.Generator, features: NDArray[np.float16]) -> Tensor:
        images, crops = features.shape[:2]
        which = rng.choice(images, size=self._batch, replace=images < self._batch)
        return torch.from_numpy(features[which, rng.integers(crops, size=self._batch)].astype(np.float32))


def _choose(rng: np.random.Generator, photographs: Sequence[Photograph], count: int) -> list[Photograph]:
    """Without repetition where there are enough: a photograph must not be in its own reference through a copy."""
    chosen = rng.choice(len(photographs), size=count, replace=len(photographs) < count)
    return [photographs[int(index)] for index in chosen]

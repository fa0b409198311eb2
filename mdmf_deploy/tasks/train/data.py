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

from mdmf_deploy.bundle.recipe import Part, Preprocessing, Split, Training, part_of
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images.crops import center_crop, normalise
from mdmf_deploy.images.decode import decode, read


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One file and the part it belongs to. generator: None for a real photograph."""

    path: Path
    sha256: str
    generator: str | None
    part: Part


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
        lines = [f"{image.sha256} {image.generator} {image.part}" for image in self.images]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def collect(real: Iterable[Path], generated: Mapping[str, Iterable[Path]], split: Split) -> Dataset:
    """Hash every file and assign it to a part. Copies count once.

    generated: generator name -> files.
    Raises UsageError if a class has fewer than two images for training or for validation.
    """
    images: dict[str, LabelledImage] = {}
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
            images.setdefault(sha256, LabelledImage(path, sha256, generator, part_of(sha256, split, generator)))
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


def center_crops(paths: Sequence[Path], size: int) -> NDArray[np.uint8]:
    """Return the centre crops that detection would take, (n, size, size, 3)."""
    with ThreadPoolExecutor() as pool:
        crops = pool.map(lambda path: center_crop(decode(read(path)).pixels, size).pixels[0], paths)
        return np.stack(list(crops))


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


@dataclass(frozen=True, slots=True)
class Window:
    """A random crop. top and left are fractions of the free space, so both halves of a pair get the same crop."""

    top: float
    left: float
    flip: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Window:
        top, left, flip = rng.random(3)
        return cls(float(top), float(left), bool(flip < 0.5))

    def cut(self, pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """Cut (size, size, 3) out of (H, W, 3). A smaller image is mirrored at its right and lower edges."""
        height, width = pixels.shape[:2]
        if min(height, width) < size:
            pixels = _mirrored(pixels, size)
            height, width = pixels.shape[:2]
        top, left = int(self.top * (height - size + 1)), int(self.left * (width - size + 1))
        crop = pixels[top : top + size, left : left + size]
        return crop[:, ::-1] if self.flip else crop


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The input of one step. real and generated hold n images each: crops (n, 3, S, S) or features (n, N, C)."""

    real: Tensor
    generated: Tensor


class Batches(Protocol):
    """Where the training loop gets its batches from.

    A batch depends on the seed and the step alone, so that a resumed run sees the batches of an uninterrupted one.
    """

    def __call__(self, step: int) -> TrainingBatch: ...


@dataclass(frozen=True, slots=True)
class Photograph:
    """The files of one real image. views[v] is aligned with reconstructions[v].

    reconstructions: empty without autoencoders.
    """

    original: Path
    views: tuple[Path, ...] = ()
    reconstructions: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingImages:
    """The files to draw training crops from.

    generated: generator -> one tuple per image of its equivalent files, the original and its views.
    """

    photographs: tuple[Photograph, ...]
    generated: dict[str, tuple[tuple[Path, ...], ...]]


class CropBatches:
    """Batches of random crops with flips. If there are reconstructions, a share of each batch is aligned pairs."""

    def __init__(
        self, images: TrainingImages, preprocessing: Preprocessing, training: Training, cache: PixelCache
    ) -> None:
        self._images = images
        self._preprocessing = preprocessing
        self._batch = training.batch
        self._seed = training.seed
        self._cache = cache
        paired = all(photograph.reconstructions for photograph in images.photographs)
        self._pairs = round(training.pairs.share * training.batch) if paired else 0
        self._pool = ThreadPoolExecutor(max_workers=2)

    def __call__(self, step: int) -> TrainingBatch:
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
            # Generators take turns, so that a large one does not drown out a small one.
            images = self._images.generated[generators[(step + turn) % len(generators)]]
            files = images[int(rng.integers(len(images)))]
            generated.append((files[int(rng.integers(len(files)))], Window.draw(rng)))
        return TrainingBatch(self._tensor(real), self._tensor(generated))

    def _tensor(self, chosen: Sequence[tuple[Path, Window]]) -> Tensor:
        size = self._preprocessing.crop
        crops = self._pool.map(lambda item: item[1].cut(self._cache(item[0]), size), chosen)
        return torch.from_numpy(normalise(np.stack(list(crops)), self._preprocessing))


def _mirrored(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    grow = ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0))
    return np.pad(pixels, grow, mode="reflect" if min(height, width) > 1 else "edge")


def _choose(rng: np.random.Generator, photographs: Sequence[Photograph], count: int) -> list[Photograph]:
    """Choose without repetition if there are enough photographs. A copy would put one into its own reference."""
    chosen = rng.choice(len(photographs), size=count, replace=len(photographs) < count)
    return [photographs[int(index)] for index in chosen]

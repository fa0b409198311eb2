"""Batches of real and generated images, as crops for a trained backbone or as cached features of a frozen one.

Every batch is drawn from (seed, step) alone, so that a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.images.decode import normalise
from mdmf_deploy.training.dataset import PixelCache, Window


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

"""Batches of random crops: balanced sources, some reals without texture, aligned pairs, both classes treated alike."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mdmf_deploy.bundle.recipe import Preprocessing, Recipe
from mdmf_deploy.tasks.train.augment import MARGIN, Canvases, Degradation, Draws, augment
from mdmf_deploy.tasks.train.data import Dataset, LabelledImage, PixelCache
from mdmf_deploy.tasks.train.featureless import featureless
from mdmf_deploy.tasks.train.pairs import PairMaker, large_enough
from mdmf_deploy.tasks.train.phases import Count, Follow

Pixels = NDArray[np.uint8]
# Crops of a group share one scale, so that they are resampled together.
_GROUPS = 4
_ENLARGED = (6.0, 16.0)
# Drawn this many times as often as there are pairs, 95% of all pairs are drawn.
_MOST_DRAWN = 3


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The input of one step. real and generated hold n images each: crops (n, 3, S, S) or features (n, N, C).

    paired: the first so many of each are pairs.
    """

    real: Tensor
    generated: Tensor
    paired: int = 0


class Batches(Protocol):
    """Where the training loop gets its batches from.

    A batch depends on the seed and the step alone, so that a resumed run sees the batches of an uninterrupted one.
    """

    def __call__(self, step: int) -> TrainingBatch: ...


class SourceSampler:
    """Draw images. A source's chance is the square root of its size, and its images share it.

    A large source then does not drown out a small one, nor is a small one learnt by heart.
    """

    def __init__(self, images: Sequence[LabelledImage]) -> None:
        self.images = images
        sizes = Counter(image.source for image in images)
        chances = np.array([sizes[image.source] ** -0.5 for image in images])
        self._chances = chances / chances.sum()

    def draw(self, rng: np.random.Generator, count: int) -> list[LabelledImage]:
        """Draw without repetition if there are enough images. A copy would put a real one into its own reference."""
        if not count:
            return []
        repeat = len(self.images) < count
        chosen = rng.choice(len(self.images), size=count, replace=repeat, p=self._chances)
        return [self.images[int(index)] for index in chosen]


class CropBatches:
    """Batches of random crops of the training part, normalised, on the training device."""

    def __init__(self, dataset: Dataset, recipe: Recipe, pairs: PairMaker, cache: PixelCache, device: torch.device):
        training = recipe.training
        self._preprocessing, self._seed, self._batch = recipe.preprocessing, training.seed, training.batch
        self._pairs, self._cache, self._device = pairs, cache, device
        self._names = training.pairs.autoencoders if pairs.nets else ()
        real = dataset.of("train", False)
        self._photographs = SourceSampler([image for image in real if image.kind == "photograph"] or real)
        self._drawn = SourceSampler([image for image in real if image.kind != "photograph"])
        self._generated = SourceSampler(dataset.of("train", True))
        shares = training.reals
        self.paired = round(training.pairs.share * self._batch) if self._names else 0
        self._featureless = min(round(shares.featureless * self._batch), self._batch - self.paired)
        self._enlarged = min(round(shares.enlarged * self._batch), self._batch - self.paired - self._featureless)
        self._share_drawn = shares.drawn if self._drawn.images else 0.0
        self._degradation = Degradation()
        self._side = math.ceil((recipe.preprocessing.crop + MARGIN) / self._degradation.scales[0])
        self._pool = ThreadPoolExecutor(max_workers=2)

    def __call__(self, step: int) -> TrainingBatch:
        rng = np.random.default_rng([self._seed, step])
        whole = self._batch - self._featureless - self._enlarged
        pairs = self._reals(rng, self.paired)
        reals = self._reals(rng, whole - self.paired, {image.sha256 for image in pairs})
        generated = self._generated.draw(rng, self._batch - self.paired)
        enlarged = self._photographs.draw(rng, self._enlarged)
        # Every item has a generator of its own, so that threads may work on them in any order.
        seeds = iter(rng.integers(2**63, size=2 * self._batch))
        halves = list(self._pool.map(self._pair, pairs, [next(seeds) for _ in pairs]))
        images = [real for real, _ in halves]
        images += self._pool.map(self._cut, reals, [next(seeds) for _ in reals])
        images += self._pool.map(self._corner, enlarged, [next(seeds) for _ in enlarged])
        images += [self._blank(next(seeds)) for _ in range(self._featureless)]
        images += [made for _, made in halves]
        images += self._pool.map(self._cut, generated, [next(seeds) for _ in generated])
        crops = self._crops(images, torch.Generator().manual_seed(int(rng.integers(2**63))))
        real, made = normalised(crops, self._preprocessing).chunk(2)
        return TrainingBatch(real, made, self.paired)

    def prepare(self, batches: int, follow: Follow) -> None:
        """Reconstruct all photographs in advance, unless this number of batches would leave many of them out.

        The batches are the same in either case. In advance, the time it takes can be told from that of the steps.
        """
        images = [*self._photographs.images, *self._drawn.images]
        trips = len(images) * len(self._names)
        if self.paired * batches < _MOST_DRAWN * trips:
            return

        def make(image: LabelledImage) -> None:
            pixels = self._cache(image.path)
            for name in self._names:
                if large_enough(pixels):
                    self._pairs(pixels, image.sha256, name)

        count = Count("pairs for training", "round trips", trips, follow)
        for _ in self._pool.map(make, images):
            count.advance(len(self._names))

    def _reals(self, rng: np.random.Generator, count: int, seen: set[str] | None = None) -> list[LabelledImage]:
        """Draw photographs, art and screenshots in the recipe's shares, without those seen if others are left."""
        drawn = round(self._share_drawn * count)
        chosen: list[LabelledImage] = []
        for sampler, wanted in ((self._photographs, count - drawn), (self._drawn, drawn)):
            if not seen:
                chosen += sampler.draw(rng, wanted)
                continue
            more = sampler.draw(rng, min(wanted + len(seen), max(wanted, len(sampler.images)))) if wanted else []
            chosen += sorted(more, key=lambda image: image.sha256 in seen)[:wanted]
        return chosen

    def _cut(self, image: LabelledImage, seed: int) -> Pixels:
        rng = np.random.default_rng(seed)
        return self._as_webp(rng, *_window(rng, self._side, self._cache(image.path)))[0]

    def _blank(self, seed: int) -> Pixels:
        rng = np.random.default_rng(seed)
        return self._as_webp(rng, featureless(rng, self._side))[0]

    def _corner(self, image: LabelledImage, seed: int) -> Pixels:
        """Enlarge a small part of a photograph."""
        rng = np.random.default_rng(seed)
        part = _window(rng, max(8, round(self._side / rng.uniform(*_ENLARGED))), self._cache(image.path))[0]
        enlarged = Image.fromarray(part).resize((self._side, self._side), Image.Resampling.BICUBIC)
        return self._as_webp(rng, np.asarray(enlarged))[0]

    def _pair(self, image: LabelledImage, seed: int) -> tuple[Pixels, Pixels]:
        rng = np.random.default_rng(seed)
        pixels = self._cache(image.path)
        if not large_enough(pixels):
            # Nothing to learn from, and nothing wrong to learn.
            [part] = _window(rng, self._side, pixels)
            return part, part
        name = self._names[int(rng.integers(len(self._names)))]
        windows = _window(rng, self._side, *self._pairs(pixels, image.sha256, name))
        real, made = self._as_webp(rng, *windows)
        return real, made

    def _as_webp(self, rng: np.random.Generator, *images: Pixels) -> list[Pixels]:
        """Pass some images through WebP, all with one quality."""
        low, high = self._degradation.quality
        chance, quality = rng.random(), int(rng.integers(low, high + 1))
        if chance >= self._degradation.webp:
            return list(images)
        coded = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=0)
            coded.append(np.array(Image.open(buffer)))
        return coded

    def _crops(self, images: list[Pixels], rng: torch.Generator) -> Tensor:
        """Return crops (2n, 3, S, S) in levels of images, the real half first. Pairs share their draws."""
        size = self._preprocessing.crop
        out = torch.empty(2 * self._batch, 3, size, size, device=self._device)
        for group in range(min(_GROUPS, self._batch)):
            slots = torch.arange(group, self._batch, min(_GROUPS, self._batch))
            count, tied = len(slots), int((slots < self.paired).sum())
            rows = torch.cat([torch.arange(count), torch.arange(tied), torch.arange(count + tied, 2 * count)])
            draws = Draws.sample(2 * count, self._degradation, rng)
            grain = torch.zeros(2 * count, 3, size + MARGIN, size + MARGIN)
            noisy = (draws.noise > 0).nonzero().squeeze(1)
            grain[noisy] = torch.randn(len(noisy), *grain.shape[1:], generator=rng)
            both = torch.cat([slots, slots + self._batch])
            canvases = Canvases.of([torch.from_numpy(images[i].copy()) for i in both.tolist()], self._side)
            made = augment(
                canvases.to(self._device), torch.arange(2 * count), draws.take(rows), size, grain[rows].to(self._device)
            )
            out[both.to(self._device)] = made
        return out


def normalised(crops: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn crops (n, 3, S, S) in levels of 0 to 255 into the model's input."""
    mean, std = (crops.new_tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (crops / 255 - mean) / std


def _window(rng: np.random.Generator, side: int, *images: Pixels) -> list[Pixels]:
    """Cut one random window of at most `side` pixels a side out of images of one size."""
    height, width = images[0].shape[:2]
    top, left = (int(rng.integers(max(0, length - side) + 1)) for length in (height, width))
    return [image[top : top + side, left : left + side] for image in images]

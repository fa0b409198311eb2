"""The images, crops and backbone tokens of `ablation.py`. Tokens are computed once, for all grids and blocks at once.

The paper trains on random crops with horizontal flips and tests on the central crop. So does this, and one step is
added: every crop is coded as JPEG once more, at a quality drawn from QUALITIES. Real images of the development data
were mostly JPEG at their source and generated ones mostly PNG, and a second coding of both hides part of that. Crops
follow from an image's SHA-256, so every run sees the same.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from refit_head import find

from mdmf_deploy.bundle.recipe import Part, Preprocessing, Recipe, part_of
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import atomic_file
from mdmf_deploy.images.crops import crops, normalise, squares
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.tasks.train.data import Dataset, LabelledImage
from mdmf_deploy.tasks.train.features import FeatureCache

Features = NDArray[np.float16]
Pixels = NDArray[np.uint8]

QUALITIES = (60, 95)
PLAN = 4
"""The crop plan of the test images besides the central crop."""
# Crops in one pass of the backbone, about.
_BATCH = 8


def divide(data: Path, recipe: Recipe, held_out: Sequence[str], limit: int | None) -> Dataset:
    """Return the images, at most `limit` of a source. Those of held-out sources are the test part.

    The others are for training, except for the recipe's share of them, the validation part. It serves only to choose
    thresholds.
    Raises UsageError if a class has fewer than two images to train on or held out, or none to choose thresholds by.
    """

    def placed(image: LabelledImage) -> LabelledImage:
        chosen = image.part == "train" and part_of(image.sha256, recipe.training.split) == "validation"
        return replace(image, part="validation") if chosen else image

    dataset = Dataset(tuple(map(placed, find(data, [], held_out, limit).images)), ())
    needed: tuple[tuple[Part, int], ...] = (("train", 2), ("validation", 1))
    for part, least in needed:
        for kind, made in (("real", False), ("generated", True)):
            if len(dataset.of(part, made)) < least:
                raise UsageError(f"{data}: expected {least} {kind} images or more in the {part} part; give more images")
    return dataset


def recoded(pixels: Pixels, quality: int) -> Pixels:
    """Return (S, S, 3) after one JPEG coding with 4:2:0 chroma."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.array(Image.open(buffer))


def random_views(image: LabelledImage, how: Preprocessing, count: int) -> NDArray[np.float32]:
    """Return random crops for training, each flipped or not, and coded at a quality of its own, (count, 3, S, S)."""
    rng, pixels = _random(image), decode(read(image.path)).pixels
    made = []
    for _ in range(count):
        top, left = (int(rng.integers(max(0, side - how.crop) + 1)) for side in pixels.shape[:2])
        crop = squares([pixels[top : top + how.crop, left : left + how.crop]], how.crop).pixels[0]
        crop = crop[:, ::-1] if rng.random() < 0.5 else crop
        made.append(recoded(crop, int(rng.integers(*QUALITIES, endpoint=True))))
    return normalise(np.stack(made), how)


def fixed_views(image: LabelledImage, how: Preprocessing, plan: int) -> NDArray[np.float32]:
    """Return the crops that detection takes by a crop plan, all coded at the image's own quality, (n, 3, S, S)."""
    quality = int(_random(image).integers(*QUALITIES, endpoint=True))
    cut = crops(decode(read(image.path)).pixels, how.crop, plan).pixels
    return normalise(np.stack([recoded(crop, quality) for crop in cut]), how)


def _random(image: LabelledImage) -> np.random.Generator:
    return np.random.default_rng(int(image.sha256[:15], 16))


@dataclass(frozen=True, slots=True)
class TokenCache:
    """Compute the tokens of crops on several grids in one pass of the backbone, and keep them as .npy files.

    FeatureCache keeps one grid of all blocks. Here each grid keeps the blocks that it is tried with, because fine grids
    of many blocks would take tens of gigabytes.

    kept: FeatureCache for the keys of the files, and for the backbone.
    grids: the blocks of each grid. They are a beginning of those that the backbone returns, in any order of grids.
    """

    kept: FeatureCache
    grids: Mapping[int, tuple[int, ...]]

    def __call__(
        self, views: Callable[[], Iterable[NDArray[np.float32]]], grids: Sequence[int], *facts: str
    ) -> dict[int, list[Features]]:
        """Return by grid the tokens of each image, (n, grid * grid, C) for n crops.

        views: yields the crops of one image after the other, (n, 3, S, S).
        facts: everything that the crops depend on.
        """
        key = self.kept.key(*facts)
        blocks = {grid: "-".join(map(str, self.grids[grid])) for grid in grids}
        paths = {grid: self.kept.folder / f"{key}.{grid}.{blocks[grid]}.npy" for grid in grids}
        counted = self.kept.folder / f"{key}.counts.npy"
        if not all(path.is_file() for path in (counted, *paths.values())):
            counts, tokens = self._tokens(views(), grids)
            self.kept.folder.mkdir(parents=True, exist_ok=True)
            for path, values in [*((paths[grid], tokens[grid]) for grid in grids), (counted, counts)]:
                with atomic_file(path) as scratch, scratch.open("wb") as file:
                    np.save(file, values)
        ends = np.cumsum(np.load(counted))[:-1]
        return {grid: np.split(np.load(path, mmap_mode="r"), ends) for grid, path in paths.items()}

    @torch.inference_mode()
    def _tokens(
        self, views: Iterable[NDArray[np.float32]], grids: Sequence[int]
    ) -> tuple[NDArray[np.intp], dict[int, Features]]:
        backbone = self.kept.detector.backbone
        counts: list[int] = []
        found: dict[int, list[Features]] = {grid: [] for grid in grids}
        for group in _groups(views):
            counts += map(len, group)
            tokens = backbone(torch.from_numpy(np.concatenate(group)))
            for grid in grids:
                columns = channels(self.grids[grid], backbone.taken, backbone.architecture.width)
                pooled = F.adaptive_avg_pool2d(tokens[:, columns], grid)
                found[grid].append(pooled.flatten(2).transpose(1, 2).numpy().astype(np.float16))
        return np.array(counts), {grid: np.concatenate(arrays) for grid, arrays in found.items()}


def _groups(views: Iterable[NDArray[np.float32]]) -> Iterator[list[NDArray[np.float32]]]:
    """Gather the crops of images until they fill a batch."""
    group: list[NDArray[np.float32]] = []
    for crop in views:
        group.append(crop)
        if sum(map(len, group)) >= _BATCH:
            yield group
            group = []
    if group:
        yield group


def channels(wanted: Sequence[int], stored: Sequence[int], width: int) -> NDArray[np.intp]:
    """Return the places of the wanted blocks' channels among those of the stored blocks."""
    return np.concatenate([np.arange(width) + width * list(stored).index(block) for block in wanted])


@dataclass(frozen=True, slots=True)
class Pool:
    """The tokens of all images.

    grids: the blocks stored of each grid.  width: the channels of one block.
    views: by grid and SHA-256, (V, N, C). The random crops of a training image, and the central crop of any other.
    corners: by SHA-256, the crops of PLAN of a test image on the base grid, (n, N, C).
    """

    dataset: Dataset
    grids: Mapping[int, tuple[int, ...]]
    width: int
    views: dict[int, dict[str, Features]] = field(default_factory=dict)
    corners: dict[str, Features] = field(default_factory=dict)

    def test_images(self) -> tuple[list[LabelledImage], dict[str, list[LabelledImage]]]:
        """Return the held-out real images, and the held-out generated ones by generator."""
        return self.dataset.of("test", False), by_generator(self.dataset.of("test", True))


def by_generator(images: Sequence[LabelledImage]) -> dict[str, list[LabelledImage]]:
    found: dict[str, list[LabelledImage]] = {}
    for image in images:
        found.setdefault(str(image.generator), []).append(image)
    return dict(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to extract.

    base: the grid of the default, which is also that of the crop plan.
    views: random crops of a training image.
    corners: whether to extract the crops of PLAN, which cost more than all others.
    backwards: begin with the last source, beside a process that begins with the first.
    """

    base: int
    views: int
    corners: bool = True
    backwards: bool = False


def extract(dataset: Dataset, cache: TokenCache, wanted: Wanted) -> Pool:
    """Compute the tokens of every image, source by source, unless they are cached."""
    backbone, how = cache.kept.detector.backbone, cache.kept.preprocessing
    pool = Pool(dataset, cache.grids, backbone.architecture.width, {grid: {} for grid in cache.grids})
    chunks = list(dict.fromkeys((image.source, image.part) for image in dataset.images))
    for source, part in reversed(chunks) if wanted.backwards else chunks:
        images = [image for image in dataset.images if (image.source, image.part) == (source, part)]
        hashes, start = [image.sha256 for image in images], time.perf_counter()
        many = (
            partial(random_views, how=how, count=wanted.views)
            if part == "train"
            else partial(fixed_views, how=how, plan=1)
        )
        facts = ("random", str(wanted.views)) if part == "train" else ("plan", "1")
        found = cache(partial(map, many, images), list(cache.grids), *facts, str(QUALITIES), *hashes)
        for grid, arrays in found.items():
            pool.views[grid] |= dict(zip(hashes, arrays, strict=True))
        if part == "test" and wanted.corners:
            cut = partial(map, partial(fixed_views, how=how, plan=PLAN), images)
            arrays = cache(cut, [wanted.base], "plan", str(PLAN), str(QUALITIES), *hashes)[wanted.base]
            pool.corners.update(zip(hashes, arrays, strict=True))
        print(f"{source}, {part}: {len(images)} images, {time.perf_counter() - start:.0f} s", flush=True)
    return pool

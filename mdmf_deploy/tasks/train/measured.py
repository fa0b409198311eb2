"""The crops that a detector in training is measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.images.crops import center_crop
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.tasks.train.data import Dataset, LabelledImage, center_crops, spread
from mdmf_deploy.tasks.train.featureless import featureless
from mdmf_deploy.tasks.train.pairs import PairMaker, large_enough
from mdmf_deploy.tasks.train.phases import Count, Follow, ignore
from mdmf_deploy.tasks.train.smoke import FULL, Sizes
from mdmf_deploy.tasks.train.validate import BANK_IMAGES, Extract, Validation

Crops = NDArray[np.uint8]
_FEATURELESS = {"flat": "flat", "gradient": "gradient", "text": "text"}
_PAIRS = 64


@dataclass(frozen=True, slots=True)
class ValidationCrops:
    """Crops (n, S, S, 3) by the names of the fields of `Validation`."""

    bank: Crops
    swapped: Crops
    real: Crops
    generated: dict[str, Crops]
    groups: dict[str, Crops]
    pairs: dict[str, tuple[Crops, Crops]]

    def validation(
        self,
        extract: Extract,
        load: Callable[[str, Crops], NDArray[np.generic]] = lambda name, crops: crops,
        follow: Follow = ignore,
    ) -> Validation:
        """Return the validation.

        load: turns crops into the inputs of `extract`, given a name for them.
        """
        return Validation(
            extract,
            load("bank", self.bank),
            load("swapped", self.swapped),
            load("real", self.real),
            {name: load(f"generated {name}", crops) for name, crops in self.generated.items()},
            {name: load(f"group {name}", crops) for name, crops in self.groups.items()},
            {
                name: (load(f"real half {name}", first), load(f"other half {name}", second))
                for name, (first, second) in self.pairs.items()
            },
            follow,
        )


def validation_crops(
    dataset: Dataset, recipe: Recipe, pairs: PairMaker, sizes: Sizes = FULL, follow: Follow = ignore
) -> ValidationCrops:
    """Cut the crops: centre crops as detection would take, of the training part for the banks and of validation else.

    The groups are flat, gradient and text, which are drawn, "double", photographs enlarged twice, and art and screen.
    """
    size = recipe.preprocessing.crop
    real, made = dataset.of("validation", False), dataset.of("validation", True)
    generated: dict[str, list[LabelledImage]] = {}
    for image in made:
        generated.setdefault(image.generator or "", []).append(image)
    banks = [spread(dataset.of("train", is_generated), BANK_IMAGES) for is_generated in (False, True)]
    count = Count("cutting crops", "images", sum(map(len, [real, made, *banks])), follow)
    crops = _cut(real, size, count)
    groups = {
        name: np.stack([featureless(np.random.default_rng(seed), size, kind) for seed in range(sizes.featureless)])
        for name, kind in _FEATURELESS.items()
    }
    kinds = np.array([image.kind for image in real])
    if (kinds == "photograph").any():
        groups["double"] = np.stack([_doubled(crop) for crop in crops[kinds == "photograph"]])
    groups |= {kind: crops[kinds == kind] for kind in ("art", "screen") if (kinds == kind).any()}
    return ValidationCrops(
        _cut(banks[0], size, count),
        _cut(banks[1], size, count),
        crops,
        {name: _cut(images, size, count) for name, images in generated.items()},
        groups,
        _pairs(recipe, [image for image in real if image.kind == "photograph"], pairs, follow),
    )


def _pairs(
    recipe: Recipe, photographs: Sequence[LabelledImage], pairs: PairMaker, follow: Follow
) -> dict[str, tuple[Crops, Crops]]:
    """Return pairs by the held-out autoencoder, and by one that is trained on."""
    plan = recipe.training.pairs
    names = [name for name in (*plan.autoencoders[:1], plan.held_out) if name in pairs.nets]
    found: dict[str, tuple[list[Crops], list[Crops]]] = {}
    chosen = spread(photographs, _PAIRS)
    count = Count("pairs for validation", "round trips", len(chosen) * len(names), follow)
    for image in chosen:
        pixels = decode(read(image.path)).pixels
        for name in count.over(names):
            if large_enough(pixels):
                halves = found.setdefault(name, ([], []))
                for half, part in zip(halves, pairs(pixels, image.sha256, name), strict=True):
                    half.append(center_crop(part, recipe.preprocessing.crop).pixels[0])
    return {name: (np.stack(first), np.stack(second)) for name, (first, second) in found.items()}


def _doubled(crop: Crops) -> Crops:
    size = len(crop)
    half = size // 2
    middle = Image.fromarray(crop[half // 2 : half // 2 + half, half // 2 : half // 2 + half])
    return np.asarray(middle.resize((size, size), Image.Resampling.BICUBIC))


def _cut(images: Sequence[LabelledImage], size: int, count: Count) -> Crops:
    return center_crops([image.path for image in images], size, count)

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
from mdmf_deploy.tasks.train.validate import BANK_IMAGES, Extract, Validation

Crops = NDArray[np.uint8]
_FEATURELESS = {"flat": "flat", "gradient": "gradient", "text": "text"}
_EACH = 24
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
        self, extract: Extract, load: Callable[[str, Crops], NDArray[np.generic]] = lambda name, crops: crops
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
        )


def validation_crops(dataset: Dataset, recipe: Recipe, pairs: PairMaker) -> ValidationCrops:
    """Cut the crops: centre crops as detection would take, of the training part for the banks and of validation else.

    The groups are flat, gradient and text, which are drawn, "double", photographs enlarged twice, and art and screen.
    """
    size = recipe.preprocessing.crop
    real = dataset.of("validation", False)
    generated: dict[str, list[LabelledImage]] = {}
    for image in dataset.of("validation", True):
        generated.setdefault(image.generator or "", []).append(image)
    crops = _cut(real, size)
    groups = {
        name: np.stack([featureless(np.random.default_rng(seed), size, kind) for seed in range(_EACH)])
        for name, kind in _FEATURELESS.items()
    }
    kinds = np.array([image.kind for image in real])
    if (kinds == "photograph").any():
        groups["double"] = np.stack([_doubled(crop) for crop in crops[kinds == "photograph"]])
    groups |= {kind: crops[kinds == kind] for kind in ("art", "screen") if (kinds == kind).any()}
    return ValidationCrops(
        _cut(spread(dataset.of("train", False), BANK_IMAGES), size),
        _cut(spread(dataset.of("train", True), BANK_IMAGES), size),
        crops,
        {name: _cut(images, size) for name, images in generated.items()},
        groups,
        _pairs(recipe, [image for image in real if image.kind == "photograph"], pairs),
    )


def _pairs(recipe: Recipe, photographs: Sequence[LabelledImage], pairs: PairMaker) -> dict[str, tuple[Crops, Crops]]:
    """Return pairs by the held-out autoencoder, and by one that is trained on."""
    plan = recipe.training.pairs
    found: dict[str, tuple[list[Crops], list[Crops]]] = {}
    for image in spread(photographs, _PAIRS):
        pixels = decode(read(image.path)).pixels
        for name in [*plan.autoencoders[:1], *filter(None, [plan.held_out])]:
            if name in pairs.nets and large_enough(pixels):
                halves = found.setdefault(name, ([], []))
                for half, part in zip(halves, pairs(pixels, image.sha256, name), strict=True):
                    half.append(center_crop(part, recipe.preprocessing.crop).pixels[0])
    return {name: (np.stack(first), np.stack(second)) for name, (first, second) in found.items()}


def _doubled(crop: Crops) -> Crops:
    size = len(crop)
    half = size // 2
    middle = Image.fromarray(crop[half // 2 : half // 2 + half, half // 2 : half // 2 + half])
    return np.asarray(middle.resize((size, size), Image.Resampling.BICUBIC))


def _cut(images: Sequence[LabelledImage], size: int) -> Crops:
    return center_crops([image.path for image in images], size)

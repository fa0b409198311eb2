"""A smoke run: all that a training run does, at a size of a minute. Its detector is worth nothing.

A smoke run finds what would end a real one hours later: a recipe that does not fit, folders with too few images,
autoencoders that are missing, weights of another backbone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import msgspec

from mdmf_deploy.bundle.recipe import Recipe, Split, part_of, source_of
from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.model.architectures import architecture

WARNING = "a smoke run: everything is shrunk to find mistakes early; the detector it makes is worth nothing"
_STEPS, _BATCH = 4, 8
# Images of each class in a part.
_ROOM = {"train": 6, "validation": 3}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a run that no recipe names.

    feature_crops: crops of each image whose features are computed for a frozen backbone.
    featureless: images of each kind without texture that are drawn for validation.
    largest: side of the part of a photograph that passes through an autoencoder. A larger part costs memory: an
        autoencoder's activations take 200 times that of an image.
    """

    feature_crops: int = 8
    featureless: int = 24
    largest: int = 512


FULL, SMALL = Sizes(), Sizes(feature_crops=1, featureless=2, largest=64)


def smoke(recipe: Recipe) -> Recipe:
    """Return a recipe with the same model, and the least crops, batches and steps that still use each part of it."""
    training, patch = recipe.training, architecture(recipe.backbone.architecture).patch
    small = msgspec.structs.replace(
        training,
        steps=min(training.steps, _STEPS),
        batch=min(training.batch, _BATCH),
        warmup=min(training.warmup, 1),
        reals=msgspec.structs.replace(
            training.reals, featureless=_one(training.reals.featureless), enlarged=_one(training.reals.enlarged)
        ),
        pairs=msgspec.structs.replace(training.pairs, share=_one(training.pairs.share)),
    )
    crop = min(recipe.preprocessing.crop, patch * max(recipe.head.pool, 4))
    preprocessing = msgspec.structs.replace(recipe.preprocessing, crop=crop)
    return msgspec.structs.replace(recipe, preprocessing=preprocessing, training=small)


def _one(share: float) -> float:
    """Return the share of one image in a small batch, if the recipe has a share at all."""
    return 1 / _BATCH if share else 0.0


def few(
    real: Sequence[Path], generated: Mapping[str, Sequence[Path]], split: Split
) -> tuple[list[Path], dict[str, list[Path]]]:
    """Return a few readable, distinct images of each class for training and for validation, of every source in turn.

    No file is read once there are enough, however many there are.
    """
    sources: dict[str, list[Path]] = {}
    for path in real:
        sources.setdefault(source_of(path), []).append(path)
    chosen = _chosen(sources, split)
    made = _chosen({source_of(Path(), name): paths for name, paths in generated.items()}, split)
    kept = {name: [path for path in paths if path in made] for name, paths in generated.items()}
    return [path for path in real if path in chosen], {name: paths for name, paths in kept.items() if paths}


def _chosen(sources: Mapping[str, Sequence[Path]], split: Split) -> set[Path]:
    chosen: dict[str, Path] = {}
    room = dict(_ROOM)
    # A hash of zeros is in the training part, unless its source is held out. Held-out images are not looked at.
    seen = {source: paths for source, paths in sources.items() if part_of("0" * 64, split, source) == "train"}
    for turn in zip_longest(*([(source, path) for path in paths] for source, paths in seen.items())):
        for source, path in filter(None, turn):
            if not any(room.values()):
                return set(chosen.values())
            try:
                data = read(path)
                sha256 = hashlib.sha256(data).hexdigest()
                part = part_of(sha256, split, source)
                if sha256 in chosen or not room.get(part):
                    continue
                decode(data)
            except ImageError:
                continue
            chosen[sha256] = path
            room[part] -= 1
    return set(chosen.values())

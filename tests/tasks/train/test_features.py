"""Cached features are reused only for the same images, weights, crops and preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers.training_data import generated, paths

from mdmf_deploy.bundle.recipe import Preprocessing, Recipe
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.data import LabelledImage
from mdmf_deploy.tasks.train.features import FeatureBatches, FeatureCache


def labelled(files: list[Path]) -> list[LabelledImage]:
    return [LabelledImage(path, f"{index:064x}", None, "train") for index, path in enumerate(files)]


def test_the_key_covers_everything_features_depend_on(tiny_recipe: Recipe) -> None:
    torch.manual_seed(0)
    detector, other = MdmfModel(tiny_recipe), MdmfModel(tiny_recipe)
    plain, larger = Preprocessing(crop=56), Preprocessing(crop=70)
    three = labelled([Path("a"), Path("b"), Path("c")])
    here = Path("not written to")
    plain_cache = FeatureCache(detector, plain, 0, here)
    keys = [
        plain_cache.key(three, 4),
        plain_cache.key(three, 0),
        FeatureCache(detector, plain, 1, here).key(three, 4),
        FeatureCache(detector, larger, 0, here).key(three, 4),
        FeatureCache(other, plain, 0, here).key(three, 4),
        plain_cache.key(three[:2], 4),
        plain_cache.key(three[::-1], 4),
    ]
    assert len(set(keys)) == len(keys)
    assert plain_cache.key(list(three), 4) == keys[0]


def test_features_are_those_of_the_images_asked_for(training_folder: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    detector = MdmfModel(tiny_recipe).eval()
    real = labelled(paths(training_folder / "real")[:3])
    fake = [
        LabelledImage(p, "f" * 63 + str(i), "checker", "train")
        for i, p in enumerate(generated(training_folder)["checker"][:3])
    ]
    features = FeatureCache(detector, tiny_recipe.preprocessing, 0, tmp_path)
    first, second = features(real, 2), features(fake, 2)
    assert first.shape == second.shape == (3, 2, 4, 192)
    assert not np.allclose(first, second)
    assert not np.allclose(first[:, 0], first[:, 1])  # two random crops
    np.testing.assert_array_equal(first, features(real, 2))


def test_a_batch_holds_one_crop_each_of_distinct_images() -> None:
    real = np.arange(6 * 3, dtype=np.float16).reshape(6, 3, 1, 1)
    make = FeatureBatches(real, -real, batch=6, seed=0)
    batch = make(0)
    assert sorted(int(value) // 3 for value in batch.real.flatten()) == list(range(6))
    assert batch.generated.max() <= 0
    assert len({float(value) for step in range(20) for value in make(step).real.flatten()}) == 18

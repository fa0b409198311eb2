"""Cached features are found again only for the same images, weights, crops and preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers.training_data import generated, paths

from mdmf_deploy.bundle.recipe import Preprocessing, Recipe
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.data import Sample
from mdmf_deploy.tasks.train.features import cache_key, cached_features


def samples(files: list[Path]) -> list[Sample]:
    return [Sample(path, f"{index:064x}", None, "train") for index, path in enumerate(files)]


def test_the_key_is_of_all_that_features_depend_on(tiny_recipe: Recipe) -> None:
    torch.manual_seed(0)
    detector, other = MdmfModel(tiny_recipe), MdmfModel(tiny_recipe)
    plain, larger = Preprocessing(crop=56), Preprocessing(crop=70)
    three = samples([Path("a"), Path("b"), Path("c")])
    keys = [
        cache_key(detector, plain, three, "4/0"),
        cache_key(detector, plain, three, "4/1"),
        cache_key(detector, larger, three, "4/0"),
        cache_key(other, plain, three, "4/0"),
        cache_key(detector, plain, three[:2], "4/0"),
        cache_key(detector, plain, three[::-1], "4/0"),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(detector, plain, list(three), "4/0") == keys[0]


def test_features_are_those_of_the_images_asked_for(training_folder: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    detector = MdmfModel(tiny_recipe).eval()
    real = samples(paths(training_folder / "real")[:3])
    fake = [
        Sample(p, "f" * 63 + str(i), "checker", "train")
        for i, p in enumerate(generated(training_folder)["checker"][:3])
    ]
    preprocessing = tiny_recipe.preprocessing
    first = cached_features(detector, preprocessing, real, 2, 0, tmp_path)
    second = cached_features(detector, preprocessing, fake, 2, 0, tmp_path)
    assert first.shape == second.shape == (3, 2, 4, 192)
    assert not np.allclose(first, second)
    assert not np.allclose(first[:, 0], first[:, 1])  # two random crops
    np.testing.assert_array_equal(first, cached_features(detector, preprocessing, real, 2, 0, tmp_path))

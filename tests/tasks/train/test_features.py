"""Cached features are reused only for the same weights, preprocessing and crops. Batches mix them place by place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mdmf_deploy.bundle.recipe import Preprocessing, Recipe
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.batches import TrainingBatch
from mdmf_deploy.tasks.train.features import FeatureBatches, FeatureCache


def test_the_key_covers_everything_features_depend_on(tiny_recipe: Recipe) -> None:
    torch.manual_seed(0)
    detector, other = MdmfModel(tiny_recipe), MdmfModel(tiny_recipe)
    plain, larger = Preprocessing(crop=56), Preprocessing(crop=70)
    here = Path("not written to")
    cache = FeatureCache(detector, plain, here)
    keys = [
        cache.key("a", "b"),
        cache.key("a"),
        cache.key("b", "a"),
        FeatureCache(detector, larger, here).key("a", "b"),
        FeatureCache(other, plain, here).key("a", "b"),
    ]
    assert len(set(keys)) == len(keys)
    assert cache.key("a", "b") == keys[0]


def test_features_are_those_of_the_crops_and_are_computed_once(tiny_recipe: Recipe, tmp_path: Path) -> None:
    detector = MdmfModel(tiny_recipe).eval()
    crops = torch.randn(5, 3, 56, 56)
    cache = FeatureCache(detector, tiny_recipe.preprocessing, tmp_path)
    features = cache(lambda: torch.split(crops, 3), "crops")
    assert features.shape == (5, 4, 192)
    with torch.inference_mode():
        whole = detector.head.patches(detector.backbone(crops)).numpy()
    np.testing.assert_allclose(features, whole, atol=2e-3 * np.abs(whole).max())
    np.testing.assert_array_equal(cache(lambda: pytest.fail("computed again"), "crops"), features)


def test_a_file_that_was_cut_short_is_made_again(tiny_recipe: Recipe, tmp_path: Path) -> None:
    crops = torch.randn(3, 3, 56, 56)
    cache = FeatureCache(MdmfModel(tiny_recipe).eval(), tiny_recipe.preprocessing, tmp_path)
    features = np.array(cache(lambda: [crops]))
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    for broken in (b"", whole[:40], whole[:-1], bytes(len(whole))):
        path.write_bytes(broken)
        np.testing.assert_array_equal(cache(lambda: [crops]), features)
        assert path.read_bytes() == whole


class Direct:
    """Stands in for the feature cache. Features are the crops themselves."""

    def __call__(self, crops, *facts: str) -> np.ndarray:  # type: ignore[no-untyped-def]
        return np.concatenate([batch.numpy() for batch in crops()]).astype(np.float16)


def test_batches_keep_places_and_pairs() -> None:
    def numbered(step: int) -> TrainingBatch:
        real = (10.0 * step + torch.arange(6))[:, None, None]
        return TrainingBatch(real, real + 1000, paired=2)

    make = FeatureBatches(numbered, 3, Direct(), 0, paired=2)  # type: ignore[arg-type]
    drawn = [make(step) for step in range(20)]
    for batch in drawn:
        assert batch.paired == 2
        assert torch.equal(batch.real % 10, torch.arange(6.0)[:, None, None])
        assert torch.equal(batch.generated - 1000, batch.real)
    assert len({float(value) for batch in drawn for value in batch.real.flatten()}) == 18
    assert torch.equal(drawn[3].real, make(3).real)

"""A fresh patch embedding hears every frequency equally loud, and the classifier exists only where it is used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.synthetic_photos import synthetic_photo
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.model.architectures import architecture
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.network import TrainingNet, initialise


@pytest.fixture(scope="module")
def crops() -> NDArray[np.float32]:
    photos = np.stack([synthetic_photo(seed, 112, 112) for seed in range(40)])
    normalised: NDArray[np.float32] = ((photos / 255 - 0.45) / 0.226).transpose(0, 3, 1, 2).astype(np.float32)
    return normalised


@pytest.fixture(scope="module")
def backbone(crops: NDArray[np.float32]) -> DinoV2:
    """A backbone that starts from scratch with seed 0."""
    fresh = DinoV2(architecture("starter_vit14"))
    initialise(fresh, crops, seed=0)
    return fresh


def test_the_patch_embedding_whitens(backbone: DinoV2, crops: NDArray[np.float32]) -> None:
    with torch.no_grad():
        embedded = backbone.patch_embed(torch.from_numpy(crops)).flatten(0, 1).numpy().astype(np.float64)
    assert abs(embedded.mean(axis=0)).max() < 1e-2
    variances = np.linalg.eigvalsh(np.cov(embedded, rowvar=False))
    pixels = np.linalg.eigvalsh(np.cov(crops.transpose(0, 2, 3, 1).reshape(-1, 14 * 14 * 3), rowvar=False))
    assert variances[-1] / np.median(variances) < 20 < pixels[-1] / np.median(pixels)


def test_the_same_seed_gives_the_same_weights(backbone: DinoV2, crops: NDArray[np.float32]) -> None:
    again = DinoV2(architecture("starter_vit14"))
    initialise(again, crops, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), again.parameters(), strict=True))


def test_the_classifier_exists_only_where_it_is_in_the_loss(tiny_recipe: Recipe) -> None:
    crops = torch.zeros(2, 3, 56, 56)
    assert TrainingNet(MdmfModel(tiny_recipe), frozen=False, classify=False)(crops)[1] is None
    logits = TrainingNet(MdmfModel(tiny_recipe), frozen=False, classify=True)(crops)[1]
    assert logits is not None
    assert logits.shape == (2, 16)

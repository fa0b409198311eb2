"""A fresh patch embedding hears every frequency equally loud, and the classifier exists only where it is used."""

from __future__ import annotations

import numpy as np
import torch
from helpers.synthetic_photos import synthetic_photo

from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.model.architectures import architecture
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.network import TrainingNet, initialise


def test_the_patch_embedding_whitens() -> None:
    photos = np.stack([synthetic_photo(seed, 112, 112) for seed in range(40)])
    crops = ((photos / 255 - 0.45) / 0.226).transpose(0, 3, 1, 2).astype(np.float32)
    backbone = DinoV2(architecture("starter_vit14"))
    initialise(backbone, crops, seed=0)
    with torch.no_grad():
        embedded = backbone.patch_embed(torch.from_numpy(crops)).flatten(0, 1).numpy().astype(np.float64)
    assert abs(embedded.mean(axis=0)).max() < 1e-2
    variances = np.linalg.eigvalsh(np.cov(embedded, rowvar=False))
    pixels = np.linalg.eigvalsh(np.cov(crops.transpose(0, 2, 3, 1).reshape(-1, 14 * 14 * 3), rowvar=False))
    assert variances[-1] / np.median(variances) < 20 < pixels[-1] / np.median(pixels)


def test_the_same_seed_gives_the_same_weights() -> None:
    crops = np.random.default_rng(0).standard_normal((40, 3, 56, 56)).astype(np.float32)
    first, second = (DinoV2(architecture("starter_vit14")) for _ in range(2))
    initialise(first, crops, seed=4)
    initialise(second, crops, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_classifier_exists_only_where_it_is_in_the_loss(tiny_recipe: Recipe) -> None:
    crops = torch.zeros(2, 3, 56, 56)
    assert TrainingNet(MdmfModel(tiny_recipe), frozen=False, classify=False)(crops)[1] is None
    logits = TrainingNet(MdmfModel(tiny_recipe), frozen=False, classify=True)(crops)[1]
    assert logits is not None
    assert logits.shape == (2, 16)

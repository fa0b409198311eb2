"""A fresh patch embedding hears every frequency equally loud, and a network trains only what it is asked to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.synthetic_photos import synthetic_photo
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Adapters, Recipe, Training
from mdmf_deploy.model.architectures import architecture
from mdmf_deploy.model.dinov2 import DinoV2
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.network import TrainingNet, Tuned, initialise


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


def test_the_probe_exists_only_where_it_is_in_the_loss(tiny_recipe: Recipe) -> None:
    features = torch.zeros(2, 4, 192)
    assert TrainingNet(MdmfModel(tiny_recipe), Training())(features)[1] is None
    logits = TrainingNet(MdmfModel(tiny_recipe), Training(patch_cross_entropy=1.0))(features)[1]
    assert logits is not None
    assert logits.shape == (2, 4)


@pytest.mark.parametrize(
    ("tuned", "trained"), [("nothing", set()), ("adapters", {"blocks.1"}), ("all", {"blocks.0", "pos_embed"})]
)
def test_no_more_of_the_backbone_is_trained_than_asked_for(
    tuned: Tuned, trained: set[str], tiny_recipe: Recipe
) -> None:
    net = TrainingNet(MdmfModel(tiny_recipe), Training(lora=Adapters(blocks=(2,))), tuned)
    names = {name for name, parameter in net.detector.backbone.named_parameters() if parameter.requires_grad}
    assert bool(names) == bool(trained)
    assert all(any(name.startswith(start) for name in names) for start in trained)
    assert "mask_token" not in names
    assert all(("blocks.1" in name) == (tuned == "adapters") for name in names) or tuned == "all"
    frozen = net.frozen_names()
    assert frozen == {name for name, parameter in net.named_parameters() if not parameter.requires_grad}


def test_sigma_is_fixed_bounded_or_free(tiny_recipe: Recipe) -> None:
    features = torch.randn(4, 4, 192)
    fixed, bounded, free = (
        TrainingNet(MdmfModel(tiny_recipe), Training(sigma=sigma)) for sigma in (0.7, (0.5, 0.6), None)
    )
    for net in (fixed, bounded, free):
        net.start(100 * features, standardise=False)
    assert fixed.detector.sigma == pytest.approx(0.7)
    assert not fixed.detector.log_sigma.requires_grad
    assert bounded.detector.sigma == pytest.approx(0.6)
    assert free.detector.sigma > 1
    with torch.no_grad():
        bounded.detector.log_sigma.fill_(-5.0)
    bounded.keep_bandwidth()
    assert bounded.detector.sigma == pytest.approx(0.5)


def test_the_start_standardises_the_inputs_of_the_head(tiny_recipe: Recipe) -> None:
    net = TrainingNet(MdmfModel(tiny_recipe), Training())
    features = 5 + 3 * torch.randn(50, 4, 192)
    net.start(features, standardise=True)
    head = net.detector.head
    assert head.mean is not None
    assert head.scale is not None
    inputs = ((features - head.mean) * head.scale).flatten(0, 1)
    torch.testing.assert_close(inputs.mean(0), torch.zeros(192), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs.std(0), torch.ones(192), atol=1e-4, rtol=0)

"""Adapters change nothing at first, are trained alone, and mean the same once they are merged."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers.backbones import randomised

from mdmf_deploy.bundle.recipe import Adapters, Recipe
from mdmf_deploy.errors import RecipeError
from mdmf_deploy.model.checkpoints import load_model, save_model
from mdmf_deploy.model.lora import Lora
from mdmf_deploy.model.onnx_weights import weights_source
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.lora import adapt, factors, merge

ADAPTERS = Adapters(blocks=(2, 4), rank=3)
CROPS = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tiny_recipe: Recipe) -> MdmfModel:
    torch.manual_seed(0)
    return randomised(MdmfModel(tiny_recipe)).eval()  # type: ignore[return-value]


def trained(model: MdmfModel) -> MdmfModel:
    """The model with adapters that training has moved."""
    adapt(model.backbone, ADAPTERS)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_fresh_adapters_change_nothing_and_alone_are_trained(model: MdmfModel) -> None:
    before = model(CROPS)
    adapt(model.backbone, ADAPTERS)
    torch.testing.assert_close(model(CROPS), before)
    names = [name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * 4 * 2
    assert {name.split(".")[1] for name in names} == {"1", "3"}


@torch.no_grad()
def test_merging_keeps_the_output(model: MdmfModel) -> None:
    plain = model(CROPS)
    adapted = trained(model)
    before = adapted(CROPS)
    assert not torch.allclose(before, plain)
    merge(adapted.backbone)
    assert not list(factors(adapted.backbone))
    torch.testing.assert_close(adapted(CROPS), before)


@torch.no_grad()
def test_factors_survive_the_checkpoint(model: MdmfModel, tiny_recipe: Recipe, tmp_path: Path) -> None:
    weights = tmp_path / "backbone.pth"
    torch.save(copy.deepcopy(model.backbone.state_dict()), weights)
    adapted = trained(model)
    path = tmp_path / "light.safetensors"
    save_model(path, adapted, {}, weights_source(weights), Lora(dict(factors(adapted.backbone)), ADAPTERS.scale))
    assert path.stat().st_size < weights.stat().st_size / 10
    torch.testing.assert_close(load_model(path, tiny_recipe, weights).eval()(CROPS), adapted(CROPS))


def test_blocks_that_do_not_exist_are_refused(model: MdmfModel) -> None:
    with pytest.raises(RecipeError, match=r"training\.lora\.blocks = \[4, 5\].*blocks 1 to 4"):
        adapt(model.backbone, Adapters(blocks=(4, 5)))

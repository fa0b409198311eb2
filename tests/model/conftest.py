"""A small random model."""

from __future__ import annotations

import pytest
from helpers.backbones import randomised

from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.model.pfs import MdmfModel


@pytest.fixture
def model(tiny_recipe: Recipe) -> MdmfModel:
    return randomised(MdmfModel(tiny_recipe))  # type: ignore[return-value]

"""The tiny bundle's sources as files: its recipe, its checkpoint, its photographs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mdmf_deploy.bundle.recipe import Recipe

RECIPE = """
name = "tiny"
summary = "A random model for tests."
backbone = { architecture = "starter_vit14" }
preprocessing = { crop = 56 }
head = { pool = 2, hidden = [16], signature = 8 }
"""


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Recipe) -> Path:
    """The tiny bundle's model with its recipe, as a file."""
    import torch

    from mdmf_deploy.model.checkpoints import save_model
    from mdmf_deploy.model.pfs import MdmfModel

    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    torch.manual_seed(0)
    model = MdmfModel(tiny_recipe)
    torch.nn.init.trunc_normal_(model.backbone.pos_embed, std=0.02)
    save_model(path, model, {"recipe": tiny_recipe})
    return path


@pytest.fixture(scope="session")
def reals(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs of the tiny bundle."""
    folder = tmp_path_factory.mktemp("reals")
    for path in tiny_bundle.parent.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder

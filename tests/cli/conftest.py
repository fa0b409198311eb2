"""The tiny bundle's sources as files: its recipe, its checkpoint, its photographs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.handmade import calibration_of

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.tasks.calibrate import write_calibration

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


@pytest.fixture(scope="module")
def calibrated(tiny_bundle: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with thresholds that make the upper third of the photographs generated."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("calibrated") / "tiny.mdmf"))
    with Detector(path) as detector:
        scores = sorted(row.score or 0.0 for row in detector.detect(sorted(photos.iterdir())))
    bundle = Bundle.open(path)
    calibration = calibration_of([scores[7]] * 9, bundle_id=bundle.bundle_id)
    write_calibration(bundle, calibration, path)
    return path

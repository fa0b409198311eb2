"""Make a bundle of a ViT-S/14 with random weights and a large bank: real sizes, nothing to download.

Weights are those of export_parity.py, and sigma is the median distance between signatures. The bank is drawn from the
normal distribution with the mean and the covariance of the signatures of some photographs. Extracting that many real
signatures would take a minute, and no cost depends on the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from export_parity import random_detector

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.recipe import Recipe, load_recipe
from mdmf_deploy.images.crops import center_crop, normalise
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.mmd.reference import uniform_bank
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.bank.build import swap_bank
from mdmf_deploy.tasks.export.export import export_detector

RECIPE = "dinov2_vits14"
_REALS = 40


def vits(sigma: float | None = None) -> tuple[MdmfModel, Recipe]:
    """Return the same random detector every time, with this bandwidth."""
    recipe = load_recipe(RECIPE)
    detector = random_detector(recipe)
    if sigma is not None:
        torch.nn.init.constant_(detector.log_sigma, math.log(sigma))
    return detector, recipe


def median_distance(detector: MdmfModel, recipe: Recipe, photographs: Sequence[Path]) -> float:
    crops = [center_crop(decode(read(path)).pixels, recipe.preprocessing.crop).pixels for path in photographs]
    with torch.inference_mode():
        signatures = detector(torch.from_numpy(normalise(np.concatenate(crops), recipe.preprocessing))).flatten(0, 1)
    return float(torch.pdist(signatures).median())


def vits_bundle(folder: Path, photographs: Sequence[Path], points: int) -> Bundle:
    """Return the fp32 bundle with a bank of that many points. It is made once a folder."""
    path = folder / f"{RECIPE}-{points}.mdmf"
    if path.is_dir():
        return Bundle.open(path)
    reals = list(photographs[:: max(1, len(photographs) // _REALS)])[:_REALS]
    detector, recipe = vits()
    detector, recipe = vits(median_distance(detector, recipe, reals[:16]))
    bundle = export_detector(detector, recipe, reals, folder / f"{RECIPE}.mdmf", "fp32").bundle
    return swap_bank(bundle, larger(bundle.bank, points), path)


def larger(bank: Bank, points: int) -> Bank:
    """Draw a bank of that many points from the normal distribution of this one's."""
    few = bank.signatures.astype(np.float64)
    draw = np.random.default_rng(0).multivariate_normal(few.mean(0), np.cov(few.T), points, method="cholesky")
    source = (np.arange(points) * len(bank.sources) // points).astype(np.int32)
    return uniform_bank(
        draw.astype(np.float32), bank.sigma, source=source, sources=bank.sources, model_sha256=bank.model_sha256
    )

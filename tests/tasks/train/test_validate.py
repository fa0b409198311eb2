"""The figures of a detector, and the gate: a bank must matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import BankSource
from mdmf_deploy.bundle.recipe import BankGate, Recipe
from mdmf_deploy.errors import TrainingFailed
from mdmf_deploy.mmd.reference import ReferenceReduction, uniform_bank
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.validate import Validation, auroc, require_bank, scores

Signatures = NDArray[np.float32]


def around(centre: float, spread: float, count: int, seed: int, within: float = 0.1) -> Signatures:
    """Return images of nine signatures each in three dimensions, near the first axis's `centre`."""
    rng = np.random.default_rng(seed)
    middles = spread * rng.standard_normal((count, 1, 3)) + np.array([centre, 0, 0])
    return (middles + within * rng.standard_normal((count, 9, 3))).astype(np.float32)


@pytest.fixture
def detector(tiny_recipe: Recipe) -> MdmfModel:
    return MdmfModel(tiny_recipe)


def measured(detector: MdmfModel, real: tuple[float, float, float], generated: tuple[float, float, float]):  # type: ignore[no-untyped-def]
    """Measure a detector whose classes lie around a centre, with a spread between and within images."""
    groups = [
        around(centre, spread, 40, seed, within)
        for seed, (centre, spread, within) in enumerate((real, generated, real, generated, real))
    ]
    bank, swapped, reals, made, more = groups
    validation = Validation(
        lambda model, inputs: np.asarray(inputs, np.float32),
        bank,
        swapped,
        reals,
        {"one": made},
        {"art": more, "flat": made},
        {"vae": (reals, made)},
    )
    return validation(detector)


def test_a_detector_that_compares_with_its_bank_passes(detector: MdmfModel) -> None:
    record = measured(detector, (0, 0.2, 0.3), (2, 0.2, 0.3))
    require_bank(record, BankGate())
    assert record["auroc_one"] == record["auroc_mean"] > 0.99
    assert record["auroc_swapped"] < 0.01
    assert record["mean_kernel"] > 0.7
    assert record["fpr_flat"] == 1
    assert record["fpr_art"] < 0.2
    assert record["pairs_vae"] > 0.99


def test_a_detector_whose_score_is_its_self_term_fails_with_its_figures(detector: MdmfModel) -> None:
    """Real images scatter far beyond sigma, and generated ones are uniform. The AUROC alone is perfect."""
    record = measured(detector, (0, 50, 20), (500, 50, 0.1))
    assert record["auroc_mean"] > 0.99
    assert record["self_rank"] > 0.9
    with pytest.raises(
        TrainingFailed, match=r"bank does not matter .* is 0\.0\d\d, .* AUROC is 1\.000, expected"
    ) as error:
        require_bank(record, BankGate())
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kernel", "swapped"), [(0.1, 0.3), (0.4, 0.6), (float("nan"), 0.3), (0.4, float("nan"))])
def test_each_limit_alone_fails(kernel: float, swapped: float) -> None:
    require_bank({"mean_kernel": 0.4, "auroc_swapped": 0.3}, BankGate())
    with pytest.raises(TrainingFailed):
        require_bank({"mean_kernel": kernel, "auroc_swapped": swapped}, BankGate())


def test_scores_are_those_of_detection() -> None:
    images, bank = around(0, 1, 5, 0, 0.5), around(0.5, 1, 7, 1, 0.5)
    reference = uniform_bank(
        bank.reshape(-1, 3),
        0.9,
        source=np.repeat(np.arange(7, dtype=np.int32), 9),
        sources=(BankSource("x", ""),) * 7,
        model_sha256="",
    )
    np.testing.assert_allclose(scores(images, bank, 0.9), ReferenceReduction()(images, reference).mmd2, atol=1e-5)


def test_measuring_leaves_the_mode_of_the_detector(detector: MdmfModel) -> None:
    for training in (True, False):
        detector.train(training)
        measured(detector, (0, 0.2, 0.3), (2, 0.2, 0.3))
        assert detector.training == training
    assert torch.is_grad_enabled()


def test_auroc() -> None:
    assert auroc(np.array([1.0, 0.0]), np.array([0.5, 2.0])) == 0.75
    # A tie counts half.
    assert auroc(np.array([0.0, 1.0, 1.0]), np.array([1.0, 2.0])) == 5 / 6

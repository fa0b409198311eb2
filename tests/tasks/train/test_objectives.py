"""The objectives against plain float64 loops over their definitions (docs/method.md, "Objectives")."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.bundle.recipe import Pairs, Training
from mdmf_deploy.errors import ShapeMismatch
from mdmf_deploy.mmd.reference import ReferenceReduction
from mdmf_deploy.tasks.train.objectives import (
    classification_loss,
    criterion,
    image_scores,
    image_test_power,
    median_distance,
    pair_loss,
    pooled_test_power,
)

Array = NDArray[np.float64]


def k(a: Array, b: Array, sigma: float) -> float:
    return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * sigma**2))


def loops(x: Array, y: Array, sigma: float) -> tuple[float, float]:
    n = len(x)
    h = [
        [k(x[i], x[j], sigma) + k(y[i], y[j], sigma) - k(x[i], y[j], sigma) - k(y[i], x[j], sigma) for j in range(n)]
        for i in range(n)
    ]
    mmd2 = sum(h[i][j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    variance = 4 / n**3 * sum(sum(row) ** 2 for row in h) - 4 / n**4 * sum(map(sum, h)) ** 2
    return mmd2, variance


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 12), d=st.integers(1, 5), sigma=st.floats(0.3, 5), seed=st.integers(0, 2**32 - 1))
def test_pooled_test_power_is_the_formula(n: int, d: int, sigma: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, d)) + 0.5
    mmd2, variance = loops(x, y, sigma)
    got = pooled_test_power(torch.from_numpy(x), torch.from_numpy(y), torch.tensor(sigma, dtype=torch.float64), 1e-4)
    assert float(got.mmd2) == pytest.approx(mmd2, rel=1e-9, abs=1e-12)
    assert float(got.variance) == pytest.approx(variance, rel=1e-9, abs=1e-12)
    assert float(got.power) == pytest.approx(mmd2 / math.sqrt(max(variance, 0) + 1e-4), rel=1e-9, abs=1e-12)


def test_unbiased_and_biased_differ_by_the_diagonal() -> None:
    rng = np.random.default_rng(1)
    n = 9
    x, y = rng.standard_normal((n, 3)), rng.standard_normal((n, 3))
    unbiased = float(pooled_test_power(torch.from_numpy(x), torch.from_numpy(y), torch.tensor(1.0), 0.0).mmd2)
    full = [
        [k(x[i], x[j], 1) + k(y[i], y[j], 1) - k(x[i], y[j], 1) - k(y[i], x[j], 1) for j in range(n)] for i in range(n)
    ]
    biased = sum(map(sum, full)) / n**2
    diagonal = sum(full[i][i] for i in range(n))
    assert biased * n**2 - diagonal == pytest.approx(unbiased * n * (n - 1), rel=1e-9)


def test_a_variance_rounded_below_zero_counts_as_zero() -> None:
    """On regular polygons all rows of H have the same sum, so the variance is 0."""
    found = []
    for n in range(3, 12):
        angles = torch.arange(n) * (2 * math.pi / n)
        x = torch.stack([angles.cos(), angles.sin()], dim=1)
        found += [pooled_test_power(x, scale * x, torch.tensor(1.0), 1e-12) for scale in torch.linspace(1, 3, 20)]
    assert any(power.variance < -1e-12 for power in found)
    assert all(power.power.isfinite() for power in found)


def test_pools_of_different_size_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match="same shape"):
        pooled_test_power(torch.zeros(3, 2), torch.zeros(4, 2), torch.tensor(1.0), 0.0)


def test_image_scores_equal_the_score_of_detection() -> None:
    """Training's score is the biased MMD^2 of detection, with a real image left out of its own reference."""
    rng = np.random.default_rng(2)
    real, generated = rng.standard_normal((5, 4, 3)), rng.standard_normal((3, 4, 3)) + 0.7
    sigma = 1.3
    got_real, got_generated = image_scores(
        torch.from_numpy(real), torch.from_numpy(generated), torch.tensor(sigma, dtype=torch.float64)
    )
    for image in range(5):
        others = np.delete(real, image, axis=0).reshape(-1, 3)
        assert float(got_real[image]) == pytest.approx(detection(real[image], others, sigma), abs=1e-12)
    for image in range(3):
        assert float(got_generated[image]) == pytest.approx(
            detection(generated[image], real.reshape(-1, 3), sigma), abs=1e-12
        )


def detection(x: Array, reference: Array, sigma: float) -> float:
    m = len(reference)
    bank = Bank(
        reference,  # type: ignore[arg-type]  # float64 keeps the comparison exact
        np.full(m, 1 / m),
        sigma,
        sum(k(a, b, sigma) for a in reference for b in reference) / m**2,
        np.zeros(m, np.int32),
        (BankSource("all", ""),),
        "",
    )
    return float(ReferenceReduction()(x[None], bank).mmd2[0])  # type: ignore[arg-type]


def test_image_test_power_is_the_formula() -> None:
    real, generated = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([5.0, 9.0])
    expected = (7 - 7 / 3) / math.sqrt(np.var([1, 2, 4]) + np.var([5, 9]) + 0.5)
    assert float(image_test_power(real, generated, 0.5)) == pytest.approx(expected, rel=1e-6)


def test_gradients_reach_signatures_and_bandwidth() -> None:
    torch.manual_seed(0)
    signatures = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    log_sigma = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def power(s: torch.Tensor, ls: torch.Tensor) -> torch.Tensor:
        return image_test_power(*image_scores(s[:3], s[3:], ls.exp()), 1e-3)

    assert torch.autograd.gradcheck(power, (signatures, log_sigma))


def test_median_distance() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0]])
    assert float(median_distance(points)) == 2.0


def test_the_classifiers_loss_falls_as_generated_logits_rise() -> None:
    even = torch.zeros(4, 9)
    right = torch.cat([torch.full((2, 9), -2.0), torch.full((2, 9), 2.0)])
    assert float(classification_loss(even)) == pytest.approx(0.6931, abs=1e-4)
    assert float(classification_loss(right)) == pytest.approx(0.1269, abs=1e-4)
    assert float(classification_loss(-right)) > 2


@pytest.mark.parametrize("objective", ["image", "pooled"])
def test_the_loss_is_the_weighted_sum_of_its_parts(objective: str) -> None:
    torch.manual_seed(0)
    signatures, logits, sigma = torch.randn(8, 4, 3), torch.randn(8, 4), torch.tensor(1.0)
    training = Training(objective=objective, test_power=2, patch_cross_entropy=3, pairs=Pairs(weight=5))  # type: ignore[arg-type]
    loss = criterion(signatures, logits, sigma, training, paired=2)
    real, generated = image_scores(signatures[:4], signatures[4:], sigma)
    expected = -2 * loss.power + 3 * classification_loss(logits) + 5 * pair_loss(real[:2], generated[:2])
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(criterion(signatures, None, sigma, training).total, -2 * loss.power)


def test_a_pair_is_content_once_its_generated_half_scores_clearly_higher() -> None:
    real = torch.tensor([0.1, 0.2])
    below, even, above = (float(pair_loss(real, real + step)) for step in (-0.5, 0.0, 0.5))
    assert below > even > above
    assert above < 0.03

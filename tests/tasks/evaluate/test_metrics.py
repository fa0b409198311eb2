"""The figures agree with scikit-learn, and they and their intervals obey their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from mdmf_deploy.tasks.evaluate.metrics import auroc_and_ap, figures, wilson

# Few distinct values, so that ties within and between the classes are common.
SCORES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=25).map(np.array)


def plain(real: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    auroc, ap = auroc_and_ap(real, generated, np.ones((1, len(real))), np.ones((1, len(generated))))
    return float(auroc[0]), float(ap[0])


@settings(deadline=None, max_examples=25)
@given(SCORES, SCORES, st.integers(0, 2**32 - 1))
def test_equal_to_scikit_learn_under_any_weights(real: np.ndarray, generated: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    real_weights, generated_weights = rng.random((3, len(real))) + 0.01, rng.random((3, len(generated))) + 0.01
    auroc, ap = auroc_and_ap(real, generated, real_weights, generated_weights)
    labels = np.r_[np.zeros(len(real)), np.ones(len(generated))]
    scores = np.r_[real, generated]
    for i in range(3):
        weights = np.r_[real_weights[i] / real_weights[i].sum(), generated_weights[i] / generated_weights[i].sum()]
        assert auroc[i] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), abs=1e-9)
        assert ap[i] == pytest.approx(average_precision_score(labels, scores, sample_weight=weights), abs=1e-9)


@settings(deadline=None)
@given(SCORES, SCORES)
def test_turning_the_scores_around_mirrors_the_auroc(real: np.ndarray, generated: np.ndarray) -> None:
    assert plain(real, generated)[0] == pytest.approx(1 - plain(-real, -generated)[0], abs=1e-12)


@settings(deadline=None)
@given(SCORES, SCORES, st.integers(2, 4))
def test_proportions_of_the_classes_do_not_matter(real: np.ndarray, generated: np.ndarray, times: int) -> None:
    assert plain(real, np.tile(generated, times)) == pytest.approx(plain(real, generated), abs=1e-12)


def test_weights_stand_for_copies() -> None:
    real, generated = np.array([0.1, 0.4, 0.4]), np.array([0.3, 0.4, 0.9])
    auroc, ap = auroc_and_ap(real, generated, np.array([[2.0, 0, 1]]), np.array([[1.0, 3, 0]]))
    assert (auroc[0], ap[0]) == pytest.approx(plain(real[[0, 0, 2]], generated[[0, 1, 1, 1]]))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    real, generated = rng.normal(0, 1, 40), rng.normal(1, 1, 30)
    whole = figures(real, generated, None, None, resamples=50)
    drawn: list[int] = []

    def watched(*arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(arrays[2].size + arrays[3].size)
        return auroc_and_ap(*arrays)

    monkeypatch.setattr("mdmf_deploy.tasks.evaluate.metrics.auroc_and_ap", watched)
    monkeypatch.setattr("mdmf_deploy.tasks.evaluate.metrics.BLOCK", 200)
    assert figures(real, generated, None, None, resamples=50) == whole
    assert max(drawn) <= 200


def test_figures_are_those_of_scikit_learn_and_lie_within_their_intervals() -> None:
    rng = np.random.default_rng(1)
    real, generated = rng.normal(0, 1, 60), rng.normal(1.5, 1, 45)
    found = figures(real, generated, real > 1, generated > 1)
    labels = np.r_[np.zeros(60), np.ones(45)]
    assert found.images == 45
    assert found.acc is not None
    assert found.tpr is not None
    assert found.acc.value == pytest.approx(balanced_accuracy_score(labels, np.r_[real, generated] > 1))
    assert found.tpr.value == (generated > 1).mean()
    for estimate in (found.auroc, found.ap, found.acc, found.tpr):
        assert estimate.low < estimate.value < estimate.high
    assert figures(real, generated, real > 1, generated > 1) == found


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # AUROC of N(0, 1) against N(1, 1) is Phi(1 / sqrt 2). 90% of 200 is 4 standard errors below 95%.
    truth, rng = 0.7602499389, np.random.default_rng(2)
    estimates = [
        figures(rng.normal(0, 1, 60), rng.normal(1, 1, 60), None, None, resamples=200).auroc for _ in range(200)
    ]
    covered = sum(estimate.low <= truth <= estimate.high for estimate in estimates)
    assert 176 <= covered <= 199


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0), (5, 10, 0.2365931, 0.7634069), (1, 263, 0.0006717, 0.0212142)],
)
def test_wilson_against_published_values(count: int, total: int, low: float, high: float) -> None:
    found = wilson(count, total)
    assert (found.value, found.low, found.high) == pytest.approx((count / total, low, high), abs=1e-4)
    assert found.low <= found.value <= found.high

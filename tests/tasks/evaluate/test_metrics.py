"""The figures agree with scikit-learn, and they and their intervals obey their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score, roc_curve

from mdmf_deploy.tasks.evaluate import metrics
from mdmf_deploy.tasks.evaluate.metrics import Figures, Sample, draws, figures, interval, mean_figures, wilson

# Few distinct values, so that ties within and between the classes are common.
SCORES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=25).map(np.array)


def plain(real: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    found = metrics.roc_figures(real, generated)
    return float(found.auroc[0]), float(found.ap[0])


def measured(real: np.ndarray, generated: np.ndarray, threshold: float | None = None, resamples: int = 1000) -> Figures:
    flags = [None if threshold is None else scores > threshold for scores in (real, generated)]
    of_generated = Sample(generated, flags[1], flags[1])
    return figures(of_generated, draws(Sample(real, flags[0], flags[0]), of_generated, resamples))


@settings(deadline=None, max_examples=15)
@given(SCORES, SCORES, st.integers(0, 2**32 - 1))
def test_equal_to_scikit_learn_under_any_weights(real: np.ndarray, generated: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    real_weights, generated_weights = rng.random((3, len(real))) + 0.01, rng.random((3, len(generated))) + 0.01
    found = metrics.roc_figures(real, generated, real_weights, generated_weights)
    labels = np.r_[np.zeros(len(real)), np.ones(len(generated))]
    scores = np.r_[real, generated]
    for i in range(3):
        weights = np.r_[real_weights[i] / real_weights[i].sum(), generated_weights[i] / generated_weights[i].sum()]
        assert found.auroc[i] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), abs=1e-9)
        assert found.ap[i] == pytest.approx(average_precision_score(labels, scores, sample_weight=weights), abs=1e-9)
        fpr, tpr, _ = roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
        assert found.tpr_at_1[i] == pytest.approx(tpr[fpr <= 0.01].max(), abs=1e-9)
        assert found.tpr_at_5[i] == pytest.approx(tpr[fpr <= 0.05].max(), abs=1e-9)
        # A step of the curve has no slope, so the crossing is found on a curve that leans by a trifle.
        leaning = fpr + 1e-10 * np.arange(len(fpr))
        crossing = brentq(lambda rate, x=leaning, y=tpr: 1 - rate - interp1d(x, y)(rate), 0, 1, xtol=1e-12)
        assert found.eer[i] == pytest.approx(crossing, abs=1e-7)


@settings(deadline=None, max_examples=40)
@given(SCORES, SCORES)
def test_turning_the_scores_around_mirrors_the_auroc(real: np.ndarray, generated: np.ndarray) -> None:
    assert plain(real, generated)[0] == pytest.approx(1 - plain(-real, -generated)[0], abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(SCORES, SCORES, st.integers(2, 4))
def test_proportions_of_the_classes_do_not_matter(real: np.ndarray, generated: np.ndarray, times: int) -> None:
    assert plain(real, np.tile(generated, times)) == pytest.approx(plain(real, generated), abs=1e-12)


def test_weights_stand_for_copies() -> None:
    real, generated = np.array([0.1, 0.4, 0.4]), np.array([0.3, 0.4, 0.9])
    found = metrics.roc_figures(real, generated, np.array([[2.0, 0, 1]]), np.array([[1.0, 3, 0]]))
    assert (found.auroc[0], found.ap[0]) == pytest.approx(plain(real[[0, 0, 2]], generated[[0, 1, 1, 1]]))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    real, generated = rng.normal(0, 1, 40), rng.normal(1, 1, 30)
    whole = measured(real, generated, resamples=50)
    drawn: list[int] = []
    once = metrics.roc_figures

    def watched(*arrays: np.ndarray) -> metrics.RocFigures:
        drawn.append(arrays[2].size + arrays[3].size)
        return once(*arrays)

    monkeypatch.setattr(metrics, "roc_figures", watched)
    monkeypatch.setattr(metrics, "BLOCK", 200)
    assert measured(real, generated, resamples=50) == whole
    assert max(drawn) <= 200


def test_figures_are_those_of_scikit_learn_and_lie_within_their_intervals() -> None:
    rng = np.random.default_rng(1)
    real, generated = rng.normal(0, 1, 160), rng.normal(1.5, 1, 45)
    found = measured(real, generated, 1.0)
    labels = np.r_[np.zeros(160), np.ones(45)]
    assert found.images == 45
    assert found.acc is not None
    assert found.acc.value == pytest.approx(balanced_accuracy_score(labels, np.r_[real, generated] > 1))
    assert found.best_acc == found.acc
    assert found.tpr == wilson(int((generated > 1).sum()), 45)
    for estimate in (found.auroc, found.ap, found.eer, found.acc, found.tpr, found.tpr_at_1, found.tpr_at_5):
        assert estimate is not None
        assert estimate.low < estimate.value < estimate.high
    assert measured(real, generated, 1.0) == found


@pytest.mark.parametrize(("n", "given"), [(19, (False, False)), (20, (False, True)), (100, (True, True))])
def test_a_rate_that_the_real_images_cannot_show_is_not_given(n: int, given: tuple[bool, bool]) -> None:
    found = measured(np.arange(n, dtype=float), np.arange(5.0), resamples=2)
    assert (found.tpr_at_1 is not None, found.tpr_at_5 is not None) == given


def test_without_flags_there_are_no_rates() -> None:
    found = measured(np.arange(3.0), np.arange(3.0), resamples=2)
    assert (found.acc, found.best_acc, found.tpr) == (None, None, None)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # AUROC of N(0, 1) against N(1, 1) is Phi(1 / sqrt 2). 90% of 200 is 4 standard errors below 95%.
    truth, rng = 0.7602499389, np.random.default_rng(2)
    estimates = [measured(rng.normal(0, 1, 60), rng.normal(1, 1, 60), resamples=200).auroc for _ in range(200)]
    covered = sum(estimate.low <= truth <= estimate.high for estimate in estimates)
    assert 176 <= covered <= 199


def test_the_interval_of_the_mean_covers_the_truth_when_generators_share_their_real_images() -> None:
    truth, rng = 0.7602499389, np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        real = Sample(rng.normal(0, 1, 60))
        drawn = [draws(real, Sample(rng.normal(1, 1, 25), stream=name), 200) for name in "abc"]
        mean = mean_figures(drawn)["auroc"]
        assert mean is not None
        assert mean.value == pytest.approx(np.mean([one["auroc"][0] for one in drawn]))
        covered += mean.low <= truth <= mean.high
    assert 87 <= covered <= 99


def test_generators_are_resampled_independently_and_their_shared_real_images_together() -> None:
    rng = np.random.default_rng(4)
    scores = rng.normal(0, 1, 30)
    one, other = (draws(Sample(scores), Sample(scores, stream=name), 400)["auroc"][1:] for name in "ab")
    apart = draws(Sample(scores, stream="beside b"), Sample(scores, stream="b"), 400)["auroc"][1:]
    # Half of the variance comes from the real images, which both share.
    assert 0.3 < np.corrcoef(one, other)[0, 1] < 0.7
    assert abs(np.corrcoef(one, apart)[0, 1]) < 0.2


def test_a_figure_that_one_generator_lacks_has_no_mean() -> None:
    with_flags = draws(Sample(np.arange(3.0), np.ones(3, bool)), Sample(np.arange(3.0), np.ones(3, bool)), 5)
    without = draws(Sample(np.arange(3.0)), Sample(np.arange(3.0)), 5)
    assert mean_figures([with_flags, without])["tpr"] is None
    assert mean_figures([with_flags])["tpr"] == interval(with_flags["tpr"])
    assert mean_figures([])["auroc"] is None


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0), (5, 10, 0.2365931, 0.7634069), (1, 263, 0.0006717, 0.0212142)],
)
def test_wilson_against_published_values(count: int, total: int, low: float, high: float) -> None:
    found = wilson(count, total)
    assert (found.value, found.low, found.high) == pytest.approx((count / total, low, high), abs=1e-4)
    assert found.low <= found.value <= found.high

"""Intervals hold what they promise, and models find what is there, but nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mdmf_deploy.tasks.evaluate.separation import LEAST, MOST, all_columns, interval, level_for, one_column, thinned


def labels(real: int, generated: int) -> np.ndarray:
    return np.arange(real + generated) >= real


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1), st.integers(2, 500), st.integers(2, 500), st.sampled_from([0.9, 0.95, 0.999]))
def test_the_ends_of_an_interval_are_as_far_off_as_their_own_standard_error_allows(
    auroc: float, n: int, m: int, level: float
) -> None:
    found = interval(auroc, n, m, level)
    assert 0 <= found.low <= found.value == auroc <= found.high <= 1
    z = norm.ppf((1 + level) / 2)
    for end in (found.low, found.high):
        if 1e-6 < end < 1 - 1e-6:
            more = (n + m) / 2 - 1
            error = end * (1 - end) / (n * m) * (1 + more * (1 - end) / (2 - end) + more * end / (1 + end))
            assert abs(auroc - end) == pytest.approx(z * error**0.5, abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1.2, 2.5])
def test_an_interval_holds_the_true_area_as_often_as_its_level_says(shift: float) -> None:
    """Scores are normal, so that the area is known."""
    area = norm.cdf(shift / 2**0.5)
    truth = labels(15, 25)
    held = 0
    for seed in range(200):
        scores = np.random.default_rng(seed).standard_normal(40) + shift * truth
        estimate = float((scores[truth] > scores[~truth, None]).mean())
        found = interval(estimate, 15, 25)
        held += found.low <= area <= found.high
    # 95% of 200 is 190, and chance moves it by 3.1.
    assert held >= 181


def test_a_perfect_area_of_few_images_is_not_certain() -> None:
    assert interval(1.0, 10, 10).low < 0.9 < interval(1.0, 200, 200).low < 1
    assert interval(1.0, 10, 10, level_for(20)).low < interval(1.0, 10, 10).low
    assert level_for(1) == 0.95
    assert level_for(10) == pytest.approx(0.995)


@pytest.mark.parametrize("separate", [one_column, all_columns])
@pytest.mark.parametrize(("real", "generated"), [(LEAST - 1, 50), (50, LEAST - 1), (0, 50), (50, 0)])
def test_few_images_give_no_figure(separate: object, real: int, generated: int) -> None:
    truth = labels(real, generated)
    column = truth.astype(float)
    assert callable(separate)
    assert separate(column if separate is one_column else column[:, None], truth) is None


def test_one_column_finds_categories_orders_and_ranges() -> None:
    truth = labels(60, 60)
    rng = np.random.default_rng(0)
    higher = rng.standard_normal(120) + 3 * truth
    middle = np.where(truth, rng.uniform(-1, 1, 120), rng.choice([-2.0, 2.0], 120) + rng.uniform(-0.5, 0.5, 120))
    for column in (truth.astype(float), higher, -higher, middle):
        found = one_column(column, truth)
        assert found is not None
        assert found.low > 0.75
    assert one_column(truth.astype(float), truth).value == 1.0  # type: ignore[union-attr]
    same = one_column(np.zeros(120), truth)
    assert same is not None
    assert same.value == 0.5


def test_values_that_no_two_images_share_separate_nothing() -> None:
    """Out of fold, because a model that remembers every value would put all images in order."""
    truth = labels(60, 60)
    for seed in range(3):
        column = np.random.default_rng(seed).permutation(120).astype(float)
        for found in (one_column(column, truth), all_columns(column[:, None], truth)):
            assert found is not None
            assert found.low < 0.55


def test_a_bin_is_not_scored_by_its_own_images() -> None:
    """Scores that knew the labels of the images they are for would be above 0.5 in each of these."""
    truth = labels(60, 60)
    found = [one_column(np.random.default_rng(seed).standard_normal(120), truth) for seed in range(20)]
    assert np.mean([estimate.value for estimate in found if estimate is not None]) < 0.52


def test_sources_of_a_few_files_each_make_no_rule() -> None:
    """Each source has a width of its own, and real and generated ones lie between each other."""
    truth = labels(100, 100)
    source = np.arange(200) % 100 // 4
    found = all_columns((400.0 + 2 * source + truth)[:, None], truth)
    assert found is not None
    assert found.low < 0.5


def test_the_model_finds_what_only_two_columns_together_show() -> None:
    """As where real images are large JPEGs or small PNGs, and generated ones the other way round."""
    rng = np.random.default_rng(0)
    truth = labels(100, 100)
    first = rng.random(200) < 0.5
    columns = np.stack([first, first ^ truth], axis=1).astype(float)
    together = all_columns(columns, truth)
    assert together is not None
    assert together.low > 0.9
    for column in columns.T:
        alone = one_column(column, truth)
        assert alone is not None
        assert alone.low < 0.6


def test_an_imbalance_of_the_classes_is_no_separation() -> None:
    truth = labels(400, 12)
    columns = np.random.default_rng(0).integers(0, 2, (412, 6)).astype(float)
    found = all_columns(columns, truth)
    assert found is not None
    assert found.low < 0.5
    columns[:, 0] = truth
    found = all_columns(columns, truth)
    assert found is not None
    assert found.value > 0.98


def test_large_classes_are_thinned_evenly_and_small_ones_are_not() -> None:
    truth = labels(30, 3 * MOST)
    kept = thinned(truth)
    assert list(kept[:30]) == list(range(30))
    assert len(kept) == 30 + MOST
    assert np.diff(kept[30:]).min() >= 2
    assert kept[-1] == len(truth) - 1
    assert list(thinned(labels(3, 2))) == list(range(5))

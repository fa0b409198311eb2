"""Percentiles, variation and ratios obey their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.tasks.benchmark.statistics import (
    STUDENT_T,
    allowed_above,
    least_samples,
    paired_ratio,
    percentile,
    spread,
    sure_percentile,
    variation,
)

values = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30)


@settings(deadline=None)
@given(values, st.integers(0, 100))
def test_a_percentile_is_the_smallest_value_with_enough_at_or_below_it(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    at_or_below = sum(value <= found for value in values)
    below = sum(value < found for value in values)
    assert 100 * at_or_below >= percent * len(values)
    assert 100 * below < percent * len(values) or below == 0


@settings(deadline=None)
@given(values, st.integers(1, 100))
def test_as_many_values_as_allowed_may_exceed_a_bound_that_a_percentile_keeps(
    values: list[float], percent: int
) -> None:
    for bound in values:
        kept = percentile(values, percent) <= bound
        assert kept == (sum(value > bound for value in values) <= allowed_above(len(values), percent))


def test_known_percentiles() -> None:
    hundred = [float(n) for n in range(100, 0, -1)]
    assert [percentile(hundred, percent) for percent in (0, 50, 90, 95, 99, 100)] == [1, 50, 90, 95, 99, 100]
    assert percentile([3.0], 99) == 3.0
    assert allowed_above(200, 99) == 2
    assert allowed_above(50, 99) == 0


@pytest.mark.parametrize(
    ("percent", "least"), [(50, 5), (90, 29), (95, 59), (99, 299), (1, 299), (25, 11), (0, 1), (100, 1)]
)
def test_a_percentile_needs_samples_that_bound_it(percent: int, least: int) -> None:
    assert least_samples(percent) == least
    assert sure_percentile([1.0] * least, percent) == 1
    assert least == 1 or sure_percentile([1.0] * (least - 1), percent) is None


@pytest.mark.parametrize("percent", [50, 90, 99])
def test_so_many_samples_reach_beyond_the_true_percentile_nineteen_times_in_twenty(percent: int) -> None:
    largest = np.random.default_rng(3).random((4000, least_samples(percent))).max(axis=1)
    assert 0.94 <= float((largest > percent / 100).mean()) <= 0.98


def test_variation_is_the_sample_deviation_over_the_mean() -> None:
    assert variation([9.0, 11.0]) == pytest.approx(math.sqrt(2) / 10)
    assert variation([5.0, 5.0, 5.0]) == 0
    assert variation([5.0]) is None
    assert variation([-1.0, 1.0]) is None


def test_a_spread_holds_median_and_quartiles() -> None:
    found = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.low, found.median, found.high, found.runs) == (2.0, 3.0, 4.0, 5)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=12), st.floats(0.2, 5))
def test_a_disturbance_of_both_values_of_a_pair_cancels(noise: list[float], times: float) -> None:
    ratio = paired_ratio([times * shared for shared in noise], noise)
    assert ratio.value == pytest.approx(times)
    assert ratio.low == pytest.approx(times)
    assert ratio.high == pytest.approx(times)


@pytest.mark.parametrize("rounds", [3, 5, 14, 40])
def test_an_interval_covers_the_true_ratio_nineteen_times_in_twenty(rounds: int) -> None:
    generator = np.random.default_rng(5)
    hits = 0
    for _ in range(2000):
        above, below = np.exp(generator.normal(0, 0.1, (2, rounds)))
        ratio = paired_ratio((2 * above).tolist(), below.tolist())
        assert ratio.low is not None
        assert ratio.high is not None
        hits += ratio.low <= 2 <= ratio.high
    assert 0.935 <= hits / 2000 <= 0.965


def test_fewer_than_three_pairs_give_no_interval() -> None:
    assert paired_ratio([3.0], [2.0]).low is None
    assert paired_ratio([3.0, 4.0], [2.0, 1.0]).low is None
    assert paired_ratio([4.0, 1.0], [1.0, 1.0]).value == pytest.approx(2)


def test_quantiles_are_those_of_students_distribution() -> None:
    special = pytest.importorskip("scipy.special")  # a second lighter to import than scipy.stats
    assert [round(float(special.stdtrit(freedom, 0.975)), 3) for freedom in STUDENT_T] == list(STUDENT_T.values())

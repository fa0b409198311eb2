"""Conformal p-values keep their promise, and thresholds agree with them to the last bit."""

from __future__ import annotations

import math
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mdmf_deploy.bundle.conformal import alarms, beta_quantile, fpr_interval, images_needed, p_value, threshold

# Few distinct values, so that ties are the rule.
SCORES = st.lists(st.integers(-3, 3).map(lambda value: value / 4), min_size=1, max_size=40).map(sorted)
RATES = st.one_of(
    st.floats(1e-4, 0.9999),
    st.tuples(st.integers(1, 40), st.integers(2, 41)).filter(lambda p: p[0] < p[1]).map(lambda p: p[0] / p[1]),
)


@given(scores=SCORES, score=st.integers(-4, 4).map(lambda value: value / 4))
def test_the_p_value_is_its_formula(scores: list[float], score: float) -> None:
    k = sum(other >= score for other in scores)
    assert p_value(score, scores) == (k + 1) / (len(scores) + 1)


@given(scores=SCORES, fpr=RATES)
def test_scores_above_the_threshold_have_p_values_up_to_the_rate(scores: list[float], fpr: float) -> None:
    limit = threshold(scores, fpr)
    near = [np.nextafter(s, direction) for s in scores for direction in (-np.inf, np.inf)]
    for score in [*scores, *near, -10.0, 10.0]:
        above = limit is not None and score > limit
        assert above == (p_value(score, scores) <= fpr)


@pytest.mark.parametrize("n", [1, 19, 99, 100, 999, 28])
def test_every_rate_that_is_a_p_value_is_reached_exactly(n: int) -> None:
    """0.29 x 100 is 28.999999999999996: rounding must not cost an alarm."""
    for rank in range(1, n + 1):
        assert alarms(n, rank / (n + 1)) == rank
        assert alarms(n, math.nextafter(rank / (n + 1), 0.0)) == rank - 1


@given(fpr=RATES)
def test_images_needed_is_the_smallest_that_will_do(fpr: float) -> None:
    n = images_needed(fpr)
    assert alarms(n, fpr) >= 1
    assert n == 0 or alarms(n - 1, fpr) == 0


def test_a_hundredth_needs_99_images() -> None:
    assert images_needed(0.01) == 99
    assert threshold([0.0] * 98, 0.01) is None
    assert threshold([*range(99)], 0.01) == 98


@pytest.mark.parametrize("quantised", [False, True])
def test_false_alarms_are_no_more_frequent_than_promised(quantised: bool) -> None:
    """P(p <= a) <= a for the next real image, over draws of all n + 1 images. Ties make it smaller."""
    generator = np.random.default_rng(1)
    draws, n = 20_000, 19
    values = generator.standard_normal((draws, n + 1))
    if quantised:
        values = np.round(values)
    p = np.array([p_value(float(row[0]), sorted(row[1:].tolist())) for row in values])
    for rate in (0.05, 0.1, 0.3, 0.7):
        measured = (p <= rate).mean()
        margin = 4 * (rate * (1 - rate) / draws) ** 0.5
        assert measured <= rate + margin
        if not quantised:
            assert measured >= rate - margin


@given(a=st.integers(1, 400), b=st.integers(1, 400), probability=st.one_of(st.floats(1e-3, 0.999), st.just(0.025)))
def test_beta_quantile_is_scipys(a: int, b: int, probability: float) -> None:
    assert beta_quantile(probability, a, b) == pytest.approx(stats.beta.ppf(probability, a, b), abs=1e-9)


def test_the_interval_holds_the_rate_as_often_as_it_says() -> None:
    """For scores uniform on [0, 1], the rate of a threshold t is exactly 1 - t."""
    generator = np.random.default_rng(2)
    n, fpr, draws = 150, 0.05, 4000
    low, high = fpr_interval(n, fpr, 0.9)
    assert 0 < low < fpr < high
    rates = [1 - threshold(np.sort(generator.random(n)).tolist(), fpr) for _ in range(draws)]
    assert np.mean([low <= rate <= high for rate in rates]) == pytest.approx(0.9, abs=0.02)
    assert np.mean(rates) == pytest.approx(alarms(n, fpr) / (n + 1), abs=0.002)


@pytest.mark.parametrize(("n", "fpr", "rank"), [(99, 0.01, 1), (150, 0.05, 7), (1000, 0.5, 500)])
def test_the_interval_is_that_of_its_beta_law(n: int, fpr: float, rank: int) -> None:
    """Coverage is Beta(n + 1 - l, l) (Angelopoulos and Bates), so the rate is Beta(l, n + 1 - l)."""
    expected = stats.beta.interval(0.95, rank, n + 1 - rank)
    assert fpr_interval(n, fpr) == pytest.approx(expected, abs=1e-9)


def at_most(count: int, n: int, p: Fraction) -> Fraction:
    """P(Binomial(n, p) <= count), exactly."""
    return sum((comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(count + 1)), Fraction())


@pytest.mark.parametrize(("n", "percent", "exceeds"), [(135, 5, 0.3276), (99, 1, 0.3697), (1000, 5, 0.4797)])
def test_the_rate_is_kept_on_average_and_exceeded_by_a_third_to_half_of_calibrations(
    n: int, percent: int, exceeds: float
) -> None:
    """For uniform scores the rate of the threshold, their l-th largest, is above a iff fewer than l of n scores exceed
    1 - a, which is P(Binomial(n, a) < l). Its mean, l / (n + 1), is at most a. The docs state the first figure.
    """
    rate = Fraction(percent, 100)
    rank = alarms(n, float(rate))
    above = at_most(rank - 1, n, rate)
    assert float(above) == pytest.approx(exceeds, abs=5e-5)
    assert beta_quantile(1 - float(above), rank, n + 1 - rank) == pytest.approx(float(rate), abs=1e-9)
    assert Fraction(rank, n + 1) <= rate
    low, high = fpr_interval(n, float(rate))
    assert low < float(rate) < high
    for end, tail in ((low, 0.975), (high, 0.025)):
        assert float(at_most(rank - 1, n, Fraction(end))) == pytest.approx(tail, abs=1e-6)


def test_the_documents_state_the_figures_of_135_photographs() -> None:
    low, high = (f"{100 * end:.1f}%" for end in fpr_interval(135, 0.05))
    above = f"{100 * float(at_most(alarms(135, 0.05) - 1, 135, Fraction(1, 20))):.0f} of 100"
    for page in ("calibration.md", "rows.md"):
        text = " ".join((Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8").split())
        assert "135" in text
        assert f"{low} to {high} in 95 of 100" in text
        assert f"above 5% in {above}" in text


def test_without_a_threshold_there_are_no_false_alarms() -> None:
    assert fpr_interval(50, 0.01) == (0.0, 0.0)


def test_the_interval_narrows_with_more_images() -> None:
    widths = [high - low for low, high in (fpr_interval(n, 0.05) for n in (100, 1000, 10_000))]
    assert widths == sorted(widths, reverse=True)

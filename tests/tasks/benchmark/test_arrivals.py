"""Requests come as a Poisson process: its counts have its mean and its variance, and a seed repeats it."""

from __future__ import annotations

import numpy as np
import pytest

from mdmf_deploy.tasks.benchmark.server import poisson


def test_counts_in_equal_windows_have_a_poisson_mean_and_variance() -> None:
    moments = poisson(rate=20, seconds=1000, seed=3)
    counts, _ = np.histogram(moments, bins=np.arange(0, 990))
    assert counts.mean() == pytest.approx(20, rel=0.03)
    # Its variance is its mean: regular arrivals would have none, bursts more.
    assert counts.var() == pytest.approx(20, rel=0.15)


def test_gaps_are_exponential() -> None:
    gaps = np.diff(poisson(rate=50, seconds=400, seed=1))
    assert np.mean(gaps > 1 / 50) == pytest.approx(np.exp(-1), abs=0.01)
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=0.03)


def test_a_seed_repeats_and_another_does_not() -> None:
    assert (poisson(10, 5, seed=7) == poisson(10, 5, seed=7)).all()
    assert (poisson(10, 5, seed=7) != poisson(10, 5, seed=8)).any()


@pytest.mark.parametrize(("rate", "seconds", "count"), [(10, 5, 50), (0.1, 1, 1), (3, 0.5, 2)])
def test_the_number_of_requests_follows_rate_and_time(rate: float, seconds: float, count: int) -> None:
    moments = poisson(rate, seconds, seed=0)
    assert len(moments) == count
    assert (np.diff(moments) > 0).all()
    assert moments[0] > 0

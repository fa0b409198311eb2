"""Percentiles, spreads and ratios of measured times."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

# Degrees of freedom -> the value of Student's t within which 95% lie. Numbers between two keys use the lower key.
STUDENT_T = {
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
    10: 2.228,
    12: 2.179,
    15: 2.131,
    20: 2.086,
    30: 2.042,
    60: 2.000,
    120: 1.980,
}


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """One figure measured several times.

    low, high: the quartiles.
    cv: coefficient of variation, None for a single run.
    """

    median: float
    low: float
    high: float
    runs: int
    cv: float | None


class Interval(msgspec.Struct, frozen=True):
    """A value and its 95% interval. The ends are None if fewer than three pairs were measured."""

    value: float
    low: float | None
    high: float | None


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that at least `percent` % of all values do not exceed.

    This is the nearest-rank percentile, as in MLPerf's LoadGen.
    values: at least one.
    percent: 0 to 100. 0 gives the smallest value.
    """
    return sorted(values)[_rank(len(values), percent) - 1]


def least_samples(percent: int) -> int:
    """Return how many samples a percentile needs: 299 for the 99th, 59 for the 95th, 29 for the 90th, 5 for the 50th.

    All of n samples lie below the true percentile p with probability p^n. From this many on, that is at most 5%: one of
    them bounds it with 95% confidence. Percentiles below 50 mirror those above. 0 and 100 are the samples' own extremes
    and need one.
    """
    share = max(percent, 100 - percent) / 100
    return 1 if share == 1 else math.ceil(math.log(0.05) / math.log(share))


def sure_percentile(values: Sequence[float], percent: int) -> float | None:
    """Return the percentile of one or more values, or None if they are too few for it."""
    return percentile(values, percent) if len(values) >= least_samples(percent) else None


def allowed_above(count: int, percent: int) -> int:
    """Return how many of `count` values may exceed a bound that their percentile keeps."""
    return count - _rank(count, percent)


def variation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation over the mean, or None for fewer than two values or a mean of zero."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return float(np.std(values, ddof=1)) / mean if mean else None


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of one or more values."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Spread(median=median, low=low, high=high, runs=len(values), cv=variation(values))


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Return the geometric mean of above[i] / below[i], with an interval by Student's t of the logarithms.

    Both values of a pair are positive and come from the same round, so they have seen the same state of the machine.
    A disturbance that slowed both cancels in their ratio.
    """
    logs = np.log(np.asarray(above, np.float64) / np.asarray(below, np.float64))
    mean = float(logs.mean())
    freedom = max((known for known in STUDENT_T if known < len(logs)), default=None)
    if freedom is None:
        return Interval(math.exp(mean), None, None)
    margin = STUDENT_T[freedom] * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Interval(math.exp(mean), math.exp(mean - margin), math.exp(mean + margin))


def _rank(count: int, percent: int) -> int:
    return max(1, -(-percent * count // 100))

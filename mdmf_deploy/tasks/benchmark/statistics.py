"""Percentiles, spreads and ratios of measured times; nothing here measures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

# Student's t by degrees of freedom: 95% lie within; for those between, the next fewer are meant.
_T = {
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
    """One figure measured several times.  low, high: the quartiles.  cv: coefficient of variation, None for one run."""

    median: float
    low: float
    high: float
    runs: int
    cv: float | None


class Interval(msgspec.Struct, frozen=True):
    """A value and its 95% interval; without an interval where fewer than three pairs were measured."""

    value: float
    low: float | None
    high: float | None


def percentile(values: Sequence[float], percent: int) -> float:
    """By nearest rank, as MLPerf's LoadGen: the smallest value that at least `percent` % of all do not exceed.

    values: at least one.  percent: 0 to 100; 0 is the smallest.
    """
    rank = max(1, -(-percent * len(values) // 100))
    return sorted(values)[rank - 1]


def allowed_above(count: int, percent: int) -> int:
    """How many of `count` values may exceed a bound that their percentile keeps."""
    return count - max(1, -(-percent * count // 100))


def variation(values: Sequence[float]) -> float | None:
    """Sample standard deviation over mean; None for fewer than two values, or a mean of zero."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return float(np.std(values, ddof=1)) / mean if mean else None


def spread(values: Sequence[float]) -> Spread:
    """values: at least one."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Spread(median=median, low=low, high=high, runs=len(values), cv=variation(values))


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Geometric mean of above[i] / below[i], positive, of the same rounds; Student's t of their logarithms.

    A round's two values have seen the same state of the machine, so what both suffered from cancels in their ratio.
    """
    logs = np.log(np.asarray(above, np.float64) / np.asarray(below, np.float64))
    mean = float(logs.mean())
    freedom = max((known for known in _T if known < len(logs)), default=None)
    if freedom is None:
        return Interval(math.exp(mean), None, None)
    margin = _T[freedom] * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Interval(math.exp(mean), math.exp(mean - margin), math.exp(mean + margin))

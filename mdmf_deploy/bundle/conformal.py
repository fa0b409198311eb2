"""Conformal p-values and thresholds: exact arithmetic on the sorted scores of n real images.

With k = how many of the n calibration scores are >= s, p(s) = (k + 1) / (n + 1). If the next real image is exchangeable
with those n, P(p <= a) <= a for every a, whatever the distribution (Vovk, Gammerman, Shafer 2005, section 2.2).
A tie with a calibration score makes p larger, which keeps the inequality.

The probability is over the draw of all n + 1 images, so it is an average over calibrations. Given one calibration, the
share of real images with p <= a may be larger than a. Its law is that of fpr_interval.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence


def p_value(score: float, scores: Sequence[float]) -> float:
    """Return (k + 1) / (n + 1), where k of the n `scores` (ascending) are >= score."""
    n = len(scores)
    return (n - bisect_left(scores, score) + 1) / (n + 1)


def alarms(n: int, fpr: float) -> int:
    """Return the largest integer l with l / (n + 1) <= fpr, for fpr in (0, 1).

    A p-value is at most fpr iff k < l, so with l = 0 none can be. The comparison uses the floats that p_value returns,
    and both agree to the last bit.
    """
    rank = math.floor(fpr * (n + 1))
    while rank / (n + 1) > fpr:
        rank -= 1
    while (rank + 1) / (n + 1) <= fpr:
        rank += 1
    return rank


def threshold(scores: Sequence[float], fpr: float) -> float | None:
    """Return the t for which score > t iff p_value(score) <= fpr, or None (plus infinity) if n is too small for fpr.

    scores: ascending.  t is the l-th largest of them, where l = alarms(n, fpr).
    """
    rank = alarms(len(scores), fpr)
    return scores[-rank] if rank else None


def images_needed(fpr: float) -> int:
    """Return the smallest n at which a p-value can reach fpr: 1 / (n + 1) <= fpr."""
    n = max(math.ceil(1 / fpr) - 2, 0)
    while 1 / (n + 1) > fpr:
        n += 1
    return n


def fpr_interval(n: int, fpr: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval that holds the threshold's false positive rate with this confidence, over the draw of images.

    For continuous scores the rate follows Beta(l, n + 1 - l), where l = alarms(n, fpr), with mean l / (n + 1)
    (Vovk 2012, "Conditional validity of inductive conformal predictors", proposition 2a; Angelopoulos and Bates 2021,
    section 3.2). Ties only lower it. The ends are that law's central quantiles, or (0, 0) if l = 0.
    """
    rank = alarms(n, fpr)
    if rank == 0:
        return 0.0, 0.0
    tail = (1.0 - confidence) / 2.0
    return beta_quantile(tail, rank, n + 1 - rank), beta_quantile(1.0 - tail, rank, n + 1 - rank)


def beta_quantile(probability: float, a: int, b: int) -> float:
    """Return the quantile of Beta(a, b), for whole a, b >= 1, by bisection on an exact identity:

    P(Beta(a, b) <= x) = P(Binomial(a + b - 1, x) >= a).
    """
    n = a + b - 1
    upper = a > n // 2  # Sum the tail with fewer terms.
    counts = range(a, n + 1) if upper else range(a)
    log_choose = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in counts]

    def cdf(x: float) -> float:
        log_x, log_rest = math.log(x), math.log1p(-x)
        tail = math.fsum(
            math.exp(choose + i * log_x + (n - i) * log_rest) for choose, i in zip(log_choose, counts, strict=True)
        )
        return tail if upper else 1.0 - tail

    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2.0
        if middle in (low, high) or high - low < 1e-14:
            return middle
        if cdf(middle) < probability:
            low = middle
        else:
            high = middle

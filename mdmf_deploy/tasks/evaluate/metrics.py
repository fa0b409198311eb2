"""Figures of merit of a detector, with 95% intervals.

AUROC, AP and ACC weigh the two classes equally, whatever their numbers, as balanced benchmarks do: AP and ACC of data
sets with other proportions would not be comparable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_SEED = 0
_Z = 1.959963984540054  # the normal distribution's 97.5% quantile
_BLOCK = 1 << 21  # counts drawn at once


class Estimate(msgspec.Struct, frozen=True):
    """A value in [0, 1] and its 95% interval."""

    value: float
    low: float
    high: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One set of generated images against the real ones.

    images: generated ones.  acc: mean of TPR and 1 - FPR.  acc, tpr: None where verdicts are uncalibrated.
    Intervals: stratified percentile bootstrap with a fixed seed; Wilson's for tpr.
    """

    images: int
    auroc: Estimate
    ap: Estimate
    acc: Estimate | None
    tpr: Estimate | None


def figures(
    real: NDArray[np.float64],
    generated: NDArray[np.float64],
    real_flagged: NDArray[np.bool_] | None,
    generated_flagged: NDArray[np.bool_] | None,
    resamples: int = RESAMPLES,
) -> Figures:
    """real: (n >= 1,) scores, generated: (m >= 1,); *_flagged: which of them got the verdict "generated"."""
    n, m = len(real), len(generated)
    aurocs, aps, accs = [], [], []
    for real_counts, generated_counts in _resamples(n, m, resamples):
        auroc, ap = auroc_and_ap(real, generated, real_counts, generated_counts)
        aurocs.append(auroc)
        aps.append(ap)
        if real_flagged is not None and generated_flagged is not None:
            accs.append((generated_counts @ generated_flagged / m + 1 - real_counts @ real_flagged / n) / 2)
    return Figures(
        images=m,
        auroc=_bootstrapped(aurocs),
        ap=_bootstrapped(aps),
        acc=_bootstrapped(accs) if accs else None,
        tpr=None if generated_flagged is None else wilson(int(generated_flagged.sum()), m),
    )


def _resamples(n: int, m: int, resamples: int) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """How often each image is in each resample, in blocks of rows (R, n), (R, m); first the data themselves, R = 1.

    A class has a generator of its own, so that the draws do not depend on the size of a block.
    """
    yield np.ones((1, n)), np.ones((1, m))
    of_real, of_generated = np.random.default_rng(_SEED).spawn(2)
    step = max(1, _BLOCK // (n + m))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        real = of_real.multinomial(n, np.full(n, 1 / n), rows).astype(np.float64)
        yield real, of_generated.multinomial(m, np.full(m, 1 / m), rows).astype(np.float64)


def auroc_and_ap(
    real: NDArray[np.float64],
    generated: NDArray[np.float64],
    real_weights: NDArray[np.float64],
    generated_weights: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Area under the ROC curve and average precision, for R weightings of the same scores at once.

    real, generated: (n,), (m,), higher is more generated.  *_weights: (R, n), (R, m), >= 0, each row with a positive
    sum; every row is scaled to sum to 1.  Ties count half in the first, as one step in the second.  Returns (R,), (R,).
    """
    scores = np.concatenate([real, generated])
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) != 0, True)
    is_real = (order < len(real))[None]
    weights = np.hstack([real_weights, generated_weights])[:, order]
    fpr, tpr = (np.cumsum(weights * chosen, axis=1)[:, ends] for chosen in (is_real, ~is_real))
    fpr, tpr = fpr / fpr[:, -1:], tpr / tpr[:, -1:]
    gained = np.diff(tpr, axis=1, prepend=0)
    auroc = ((tpr - gained / 2) * np.diff(fpr, axis=1, prepend=0)).sum(axis=1)
    flagged = tpr + fpr
    precision = np.divide(tpr, flagged, out=np.zeros_like(tpr), where=flagged > 0)
    return auroc, (gained * precision).sum(axis=1)


def wilson(count: int, total: int) -> Estimate:
    """The rate count / total with Wilson's score interval (JASA 22, 1927); total >= 1."""
    rate = count / total
    spread = _Z / (1 + _Z**2 / total) * math.sqrt(rate * (1 - rate) / total + (_Z / (2 * total)) ** 2)
    centre = (rate + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    return Estimate(rate, min(rate, max(0.0, centre - spread)), max(rate, min(1.0, centre + spread)))


def _bootstrapped(blocks: list[NDArray[np.float64]]) -> Estimate:
    """blocks[0]: of the data; the rest: of the resamples."""
    low, high = np.quantile(np.concatenate(blocks[1:]), [0.025, 0.975])
    return Estimate(float(blocks[0][0]), float(low), float(high))

"""Measure a detector by AUROC, AP, ACC and TPR, with 95% intervals.

AUROC, AP and ACC weigh the two classes equally, whatever their sizes. This is how balanced benchmarks count, and it
keeps AP and ACC comparable between data sets with different proportions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_SEED = 0
# The normal distribution's 97.5% quantile.
_Z = 1.959963984540054
# How many counts are drawn at once. It limits memory and changes no figure.
BLOCK = 1 << 21


class Estimate(msgspec.Struct, frozen=True):
    """A value in [0, 1] and its 95% interval."""

    value: float
    low: float
    high: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one set of generated images against the real ones.

    images: how many are generated.
    acc: the mean of TPR and 1 - FPR.
    uncertain: how many of them got the verdict "uncertain". acc and tpr count them as not "generated".
    acc, tpr, uncertain: None where verdicts are uncalibrated.
    The intervals come from a stratified percentile bootstrap with a fixed seed, and for tpr from Wilson's formula.
    """

    images: int
    auroc: Estimate
    ap: Estimate
    acc: Estimate | None
    tpr: Estimate | None
    uncertain: int | None = None


def figures(
    real: NDArray[np.float64],
    generated: NDArray[np.float64],
    real_flagged: NDArray[np.bool_] | None,
    generated_flagged: NDArray[np.bool_] | None,
    resamples: int = RESAMPLES,
) -> Figures:
    """Compare the scores of real images, (n >= 1,), with those of generated ones, (m >= 1,).

    *_flagged: which images got the verdict "generated", None if verdicts are uncalibrated.
    """
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
    """Yield how often each image is in each resample, in blocks of R rows: (R, n) and (R, m).

    The first block, with R = 1, is the data itself. Each class has its own random generator, so that the draws do not
    depend on the size of a block.
    """
    yield np.ones((1, n)), np.ones((1, m))
    of_real, of_generated = np.random.default_rng(_SEED).spawn(2)
    step = max(1, BLOCK // (n + m))
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
    """Return the area under the ROC curve and the average precision, for R weightings of the same scores at once.

    real, generated: (n,) and (m,) scores, higher for generated images.
    *_weights: (R, n) and (R, m), >= 0. Each row has a positive sum and is scaled to sum to 1.
    A tie counts half in the area, and is one step of the precision. Returns (R,) and (R,).
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
    """Return the rate count / total with Wilson's score interval (JASA 22, 1927). total is at least 1."""
    rate = count / total
    spread = _Z / (1 + _Z**2 / total) * math.sqrt(rate * (1 - rate) / total + (_Z / (2 * total)) ** 2)
    centre = (rate + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    return Estimate(rate, min(rate, max(0.0, centre - spread)), max(rate, min(1.0, centre + spread)))


def _bootstrapped(blocks: list[NDArray[np.float64]]) -> Estimate:
    """Return the value of the data, blocks[0], with the 95% interval of the resamples in the other blocks."""
    low, high = np.quantile(np.concatenate(blocks[1:]), [0.025, 0.975])
    return Estimate(float(blocks[0][0]), float(low), float(high))

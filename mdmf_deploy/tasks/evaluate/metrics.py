"""Measure a detector by AUROC, AP, EER, ACC and TPR, with 95% intervals.

AUROC, AP and ACC weigh the two classes equally, whatever their sizes. This is how balanced benchmarks count, and it
keeps AP and ACC comparable between data sets with different proportions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_SEED = 0
# The normal distribution's 97.5% quantile.
_Z = 1.959963984540054
LEAST_REAL = {"tpr_at_1": 100, "tpr_at_5": 20}
"""Figure -> how many real images it needs. With fewer, the highest of them is all that its rate can mean."""

# How many counts are drawn at once. It limits memory and changes no figure.
BLOCK = 1 << 21


class Estimate(msgspec.Struct, frozen=True):
    """A value in [0, 1] and its 95% interval."""

    value: float
    low: float
    high: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one set of generated images against real ones.

    images: how many are generated.
    eer: the equal error rate, where FPR and 1 - TPR meet on the ROC curve, linear between its points.
    tpr_at_1, tpr_at_5: the highest TPR of a threshold with an FPR of at most 1% or 5%. None with fewer than 100 or 20
        real images, which cannot show such an FPR.
    acc: the mean of TPR and 1 - FPR of the bundle's own verdicts.
    best_acc: the same at a threshold that other images chose (thresholds.py). None where no image could choose one.
    uncertain: how many of them got the verdict "uncertain". acc and tpr count them as not "generated".
    acc, tpr, uncertain: None where verdicts are uncalibrated.
    The intervals come from a stratified percentile bootstrap with a fixed seed, and for tpr from Wilson's formula.
    """

    images: int
    auroc: Estimate
    ap: Estimate
    eer: Estimate
    tpr_at_1: Estimate | None
    tpr_at_5: Estimate | None
    acc: Estimate | None
    best_acc: Estimate | None
    tpr: Estimate | None
    uncertain: int | None = None


AVERAGED = ("auroc", "ap", "eer", "tpr_at_1", "tpr_at_5", "acc", "best_acc", "tpr")
"""The figures that are averaged over generators."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The images of one class that are compared.

    scores: (n >= 1,).
    flagged: (n,) whether each has the verdict "generated". None if verdicts are uncalibrated.
    above: (n,) whether each is above the threshold that other images chose. None if there is none.
    stream: names the random numbers that resample them. Two samples of the same images share one, so that their mean
        over generators has the right interval.
    """

    scores: NDArray[np.float64]
    flagged: NDArray[np.bool_] | None = None
    above: NDArray[np.bool_] | None = None
    stream: str = ""


Draws = dict[str, NDArray[np.float64]]
"""Figure -> its value, and then its value in each resample, (1 + resamples,)."""


def draws(real: Sample, generated: Sample, resamples: int = RESAMPLES) -> Draws:
    """Return the figures of AVERAGED that these samples have, each with its bootstrap."""
    n, m = len(real.scores), len(generated.scores)
    blocks: dict[str, list[NDArray[np.float64]]] = {}
    for real_counts, generated_counts in _resamples(real, generated, resamples):
        found = roc_figures(real.scores, generated.scores, real_counts, generated_counts)._asdict()
        for name, least in LEAST_REAL.items():
            if n < least:
                del found[name]
        flags = {"acc": (real.flagged, generated.flagged), "best_acc": (real.above, generated.above)}
        for name, (of_real, of_generated) in flags.items():
            if of_real is not None and of_generated is not None:
                found[name] = (generated_counts @ of_generated / m + 1 - real_counts @ of_real / n) / 2
        if real.flagged is not None and generated.flagged is not None:
            found["tpr"] = generated_counts @ generated.flagged / m
        for name, values in found.items():
            blocks.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in blocks.items()}


def figures(generated: Sample, drawn: Draws) -> Figures:
    """Return the figures that were drawn for these generated images."""
    found = {name: interval(drawn[name]) if name in drawn else None for name in AVERAGED}
    if generated.flagged is not None and found["tpr"] is not None:
        found["tpr"] = wilson(int(generated.flagged.sum()), len(generated.flagged))
    return Figures(images=len(generated.scores), **found)  # type: ignore[arg-type]


def mean_figures(all_drawn: Sequence[Draws]) -> dict[str, Estimate | None]:
    """Return each figure's mean over the generators, with its interval. None if one of them lacks it."""
    return {
        name: interval(np.mean([drawn[name] for drawn in all_drawn], axis=0))
        if all_drawn and all(name in drawn for drawn in all_drawn)
        else None
        for name in AVERAGED
    }


def _resamples(
    of_real: Sample, of_generated: Sample, resamples: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield how often each image is in each resample, in blocks of R rows: (R, n) and (R, m).

    The first block, with R = 1, is the data itself. Each class has its own random generator, so that the draws do not
    depend on the size of a block.
    """
    n, m = len(of_real.scores), len(of_generated.scores)
    yield np.ones((1, n)), np.ones((1, m))
    real, generated = _random("real", of_real.stream), _random("generated", of_generated.stream)
    step = max(1, BLOCK // (n + m))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        counts = real.multinomial(n, np.full(n, 1 / n), rows).astype(np.float64)
        yield counts, generated.multinomial(m, np.full(m, 1 / m), rows).astype(np.float64)


def _random(kind: str, stream: str) -> np.random.Generator:
    return np.random.default_rng([_SEED, *f"{kind} {stream}".encode()])


class RocFigures(NamedTuple):
    """Figures of R weightings of the same scores, each (R,). Figures says what they are."""

    auroc: NDArray[np.float64]
    ap: NDArray[np.float64]
    eer: NDArray[np.float64]
    tpr_at_1: NDArray[np.float64]
    tpr_at_5: NDArray[np.float64]


def roc_figures(
    real: NDArray[np.float64],
    generated: NDArray[np.float64],
    real_weights: NDArray[np.float64] | None = None,
    generated_weights: NDArray[np.float64] | None = None,
) -> RocFigures:
    """Return the figures of the ROC curve, for R weightings of the same scores at once.

    real, generated: (n,) and (m,) scores, higher for generated images.
    *_weights: (R, n) and (R, m), >= 0. Each row has a positive sum and is scaled to sum to 1. None means (1, n) ones.
    A tie is one point of the curve, counts half in the area, and is one step of the precision.
    """
    fpr, tpr = roc_curve(real, generated, real_weights, generated_weights)
    gained = np.diff(tpr, axis=1)
    auroc = ((tpr[:, 1:] - gained / 2) * np.diff(fpr, axis=1)).sum(axis=1)
    flagged = tpr[:, 1:] + fpr[:, 1:]
    precision = np.divide(tpr[:, 1:], flagged, out=np.zeros_like(flagged), where=flagged > 0)
    ap = (gained * precision).sum(axis=1)
    return RocFigures(auroc, ap, _eer(fpr, tpr), _tpr_at(0.01, fpr, tpr), _tpr_at(0.05, fpr, tpr))


def roc_curve(
    real: NDArray[np.float64],
    generated: NDArray[np.float64],
    real_weights: NDArray[np.float64] | None = None,
    generated_weights: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return FPR and TPR, each (R, 1 + K), from (0, 0) to (1, 1), with a point for each of the K distinct scores.

    The arguments are those of roc_figures.
    """
    scores = np.concatenate([real, generated])
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) != 0, True)
    is_real = (order < len(real))[None]
    given = [
        np.ones((1, len(values))) if weights is None else weights
        for values, weights in ((real, real_weights), (generated, generated_weights))
    ]
    weights = np.hstack(given)[:, order]
    sums = (np.cumsum(weights * chosen, axis=1)[:, ends] for chosen in (is_real, ~is_real))
    fpr, tpr = (np.pad(part / part[:, -1:], ((0, 0), (1, 0))) for part in sums)
    return fpr, tpr


def _eer(fpr: NDArray[np.float64], tpr: NDArray[np.float64]) -> NDArray[np.float64]:
    excess = fpr + tpr - 1  # ascends from -1 to 1
    rows = np.arange(len(fpr))
    at = np.argmax(excess >= 0, axis=1)
    before, after = excess[rows, at - 1], excess[rows, at]
    share = -before / (after - before)
    eer: NDArray[np.float64] = fpr[rows, at - 1] + share * (fpr[rows, at] - fpr[rows, at - 1])
    return eer


def _tpr_at(most: float, fpr: NDArray[np.float64], tpr: NDArray[np.float64]) -> NDArray[np.float64]:
    # A rate that equals the bound may lie above it by rounding.
    at = (fpr <= most + 1e-9).sum(axis=1) - 1
    found: NDArray[np.float64] = tpr[np.arange(len(tpr)), at]
    return found


def wilson(count: int, total: int) -> Estimate:
    """Return the rate count / total with Wilson's score interval (JASA 22, 1927). total is at least 1."""
    rate = count / total
    spread = _Z / (1 + _Z**2 / total) * math.sqrt(rate * (1 - rate) / total + (_Z / (2 * total)) ** 2)
    centre = (rate + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    return Estimate(rate, min(rate, max(0.0, centre - spread)), max(rate, min(1.0, centre + spread)))


def interval(drawn: NDArray[np.float64]) -> Estimate:
    """Return the value of the data, drawn[0], with the 95% interval of the resamples after it."""
    low, high = np.quantile(drawn[1:], [0.025, 0.975])
    return Estimate(float(drawn[0]), float(low), float(high))

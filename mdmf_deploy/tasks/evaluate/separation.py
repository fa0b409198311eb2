"""How well known classes can be separated by a few columns of numbers, out of fold, with an interval.

Every score is out of fold: the images of a fifth are scored by what the other four fifths show. So an AUROC says what
holds for images not seen, and is about 0.5 where there is nothing to find.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.tasks.evaluate.metrics import Estimate, roc_figures

FOLDS = 5
LEAST = 10
"""Images of each class that are needed. With fewer, even files of two formats could be so by chance."""

MOST = 1000
"""Images of each class that are looked at. More would cost time and hardly narrow the interval."""

_TREES = 10
_BINS = 8
_SEED = 0
# The variance of an AUROC from out-of-fold scores, over that from fixed ones. Models differ by fold, and share most of
# their images (Nadeau and Bengio, Machine Learning 52 (2003) 239: 1 / k + 1 / (k - 1) in place of 1 / k).
_INFLATION = 1 + FOLDS / (FOLDS - 1)
_STEPS = 40  # of a bisection, each of which halves the error

Labels = NDArray[np.bool_]
"""(n,): True for generated images."""


def level_for(comparisons: int) -> float:
    """Return the level of each interval so that all of them hold together at 95% (Bonferroni)."""
    return 1 - 0.05 / max(1, comparisons)


def interval(auroc: float, n: int, m: int, level: float = 0.95, inflation: float = 1.0) -> Estimate:
    """Return an AUROC of n and m images with its interval.

    inflation: the factor by which the variance is larger than that of independent scores.
    Source: Newcombe, Statistics in Medicine 25 (2006) 559, method 5. The ends are the areas whose own standard error
    (Hanley and McNeil) would put `auroc` exactly at the edge. So an area of 1 has an interval, too, unlike with a
    bootstrap.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    more = (n + m) / 2 - 1

    def beyond(area: float) -> bool:
        variance = area * (1 - area) * (1 + more * ((1 - area) / (2 - area) + area / (1 + area))) / (n * m)
        return bool((auroc - area) ** 2 > z**2 * inflation * variance)

    def edge(outside: float) -> float:
        inside = auroc
        for _ in range(_STEPS):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if beyond(middle) else (middle, outside)
        return inside

    return Estimate(auroc, edge(0.0), edge(1.0))


def one_column(values: NDArray[np.float64], generated: Labels, level: float = 0.95) -> Estimate | None:
    """Return how well one column alone separates the classes, or None if a class has fewer than LEAST images.

    values: (n,). Few different values are categories, and more are divided into 8 bins of about equally many images.
    A value's score is the logarithm of its share of generated images over that of real ones, each with one image added.
    """
    if not _enough(generated):
        return None
    bins = _binned(values)
    count = int(bins.max()) + 1
    scores = np.empty(len(bins))
    for held_out in _folds(generated):
        shares = []
        for label in (True, False):
            chosen = ~held_out & (generated == label)
            shares.append((np.bincount(bins[chosen], minlength=count) + 1) / (chosen.sum() + count))
        scores[held_out] = np.log(shares[0] / shares[1])[bins[held_out]]
    return _measured(scores, generated, level)


def all_columns(columns: NDArray[np.float64], generated: Labels, level: float = 0.95) -> Estimate | None:
    """Return how well all columns together separate the classes, or None if a class has fewer than LEAST images.

    columns: (n, k), without NaN.
    The model is scikit-learn's random forest, with both classes weighted alike. A leaf holds a twentieth of the weight
    and three images, so no rule rests on a few files that came from one source.
    Raises ImportError if scikit-learn is not installed.
    """
    from sklearn.ensemble import RandomForestClassifier

    if not _enough(generated):
        return None
    scores = np.empty(len(columns))
    for held_out in _folds(generated):
        forest = RandomForestClassifier(
            _TREES,
            max_features=0.5,
            min_samples_leaf=3,
            min_weight_fraction_leaf=0.05,
            class_weight="balanced",
            random_state=_SEED,
        )
        forest.fit(columns[~held_out], generated[~held_out])
        scores[held_out] = forest.predict_proba(columns[held_out])[:, 1]
    return _measured(scores, generated, level)


def thinned(generated: Labels) -> NDArray[np.intp]:
    """Return the indices of at most MOST images of each class, evenly over their order."""
    kept = []
    for label in (False, True):
        places = np.flatnonzero(generated == label)
        kept.append(places if len(places) <= MOST else places[np.linspace(0, len(places) - 1, MOST).astype(int)])
    return np.sort(np.concatenate(kept))


def _enough(generated: Labels) -> bool:
    return min(int(generated.sum()), int((~generated).sum())) >= LEAST


def _folds(generated: Labels) -> Iterator[Labels]:
    """Yield which images are held out, for each fold. Each has its share of both classes."""
    fold = np.empty(len(generated), int)
    shuffle = np.random.default_rng(_SEED)
    for label in (False, True):
        places = shuffle.permutation(np.flatnonzero(generated == label))
        fold[places] = np.arange(len(places)) % FOLDS
    for number in range(FOLDS):
        yield fold == number


def _binned(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the bin of each value, from 0. The labels have no part in it."""
    distinct, places = np.unique(values, return_inverse=True)
    if len(distinct) <= _BINS:
        return places
    edges = np.unique(np.quantile(values, np.arange(1, _BINS) / _BINS))
    return np.searchsorted(edges, values, side="left")


def _measured(scores: NDArray[np.float64], generated: Labels, level: float) -> Estimate:
    real, fake = scores[~generated], scores[generated]
    return interval(float(roc_figures(real, fake).auroc[0]), len(real), len(fake), level, _INFLATION)

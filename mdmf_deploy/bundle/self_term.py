"""A check of the self term that a bank brings along, at a cost that does not grow with the bank."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# Pairs of points that are drawn, and the chance to refuse a bank whose self term is right.
PAIRS = 8192
_MISTAKE = 1e-9
_CHUNK = 1024
_SEED = 20261127
# Rounding of the self term and of its check, in units of (sum |w|)^2.
_ROUNDING = 1e-6


def self_term_is_off(
    signatures_at: Callable[[NDArray[np.intp]], NDArray[np.float32]],
    weights: NDArray[np.float64],
    sigma: float,
    self_term: float,
) -> str | None:
    """Return a clause that says how far off a self term is, or None if it may be right.

    signatures_at: places (n,) -> the signatures there, (n, d).  weights: (M,), not all 0.
    All pairs of a small bank count. In a larger one, PAIRS pairs are drawn, always the same, each point with a chance
    in proportion to |w|. The mean of their signed kernel values times (sum |w|)^2 is the self term on average. By
    Hoeffding's inequality (1963, theorem 2) it is off by more than r sqrt(log(2 / p) / (2 n)) with a chance of at most
    p, for n values in an interval of length r.
    """
    m, mass = len(weights), float(np.abs(weights).sum())
    if m * m <= PAIRS:
        first, second = (places.ravel() for places in np.indices((m, m)))
        kernel = _kernel_values(signatures_at, first, second, sigma)
        found, allowed = float((weights[first] * weights[second] * kernel).sum()), 0.0
    else:
        drawn = _uniform(2 * PAIRS).reshape(2, PAIRS)
        heap = np.cumsum(np.abs(weights))
        places = [np.minimum(np.searchsorted(heap, one * heap[-1], side="right"), m - 1) for one in drawn]
        signs = np.sign(weights[places[0]] * weights[places[1]])
        found = mass * mass * float((signs * _kernel_values(signatures_at, places[0], places[1], sigma)).mean())
        interval = 1.0 if weights.min() >= 0.0 else 2.0
        allowed = interval * mass * mass * math.sqrt(math.log(2.0 / _MISTAKE) / (2.0 * PAIRS))
    allowed += _ROUNDING * mass * mass
    if abs(found - self_term) <= allowed:
        return None
    return f"its self term is {self_term:.6g}, and its points give {found:.6g}, to within {allowed:.2g}"


def _uniform(count: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1), always the same: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).

    Importing numpy.random would take longer than the whole check.
    """
    bits = (np.arange(count, dtype=np.uint64) + np.uint64(_SEED)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits = (bits ^ (bits >> np.uint64(31))) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _kernel_values(
    signatures_at: Callable[[NDArray[np.intp]], NDArray[np.float32]],
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    sigma: float,
) -> NDArray[np.float64]:
    """Return k(r_i, r_j) of these pairs, from direct differences."""
    squared = np.empty(len(first))
    for start in range(0, len(first), _CHUNK):
        own = slice(start, start + _CHUNK)
        difference = signatures_at(first[own]).astype(np.float64) - signatures_at(second[own])
        squared[own] = np.einsum("nd,nd->n", difference, difference)
    values: NDArray[np.float64] = np.exp(squared / (-2.0 * sigma * sigma))
    return values

"""Candidates worth choosing among: a large bank is cut into neighbourhoods, and each names its own best points.

A narrow kernel hardly sees beyond a neighbourhood, so points chosen within one are nearly those that a choice among all
of them would take, at a small part of its cost, which grows with the square of the points taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.mmd.compress.greedy import choose
from mdmf_deploy.mmd.compress.kernel import Floats, Kernel, Points, Workers, multiply

_NEIGHBOURHOOD = 3072
# How many times its even share of the points a neighbourhood may name.
_SHARES = 3


@dataclass(frozen=True, slots=True)
class Named:
    """Points in the order of what they do for their neighbourhoods, most first.

    places: (k,).  remaining: (k,) MMD^2 left after each, were neighbourhoods blind to each other: an estimate.
    """

    places: NDArray[np.intp]
    remaining: Floats


def name_candidates(points: Points, weights: Floats, kernel: Kernel, run: Workers, most: int) -> Named:
    """At most `most` of the n points: those that lower MMD^2 most, each seen from its own neighbourhood.

    points: (n, d).  weights: (n,), as in the bank.
    """
    parts = list(neighbourhoods(points.x, np.arange(len(points))))

    def name(part: NDArray[np.intp]) -> tuple[NDArray[np.intp], Floats, float]:
        own, mass = points[part], weights[part]
        z = multiply(own, own, mass, kernel, Workers())
        start = float(mass @ z)
        share = -(-_SHARES * most * len(part) // len(points))
        choice = choose(own, z, start, kernel, Workers(), most=share)
        return part[choice.order], -np.diff(choice.remaining, prepend=start), start

    places, gains, starts = zip(*run.each(name, parts), strict=True)
    all_gains = np.concatenate(gains)
    best = np.argsort(-all_gains, kind="stable")[:most]
    return Named(np.concatenate(places)[best], sum(starts) - np.cumsum(all_gains[best]))


def neighbourhoods(x: Floats, places: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """The places cut in halves across their widest direction, again and again, down to a few thousand each."""
    if len(places) <= _NEIGHBOURHOOD:
        yield places
        return
    own = x[places] - x[places].mean(axis=0)
    widest = np.linalg.eigh(own.T @ own)[1][:, -1]
    ranked = places[np.argsort(own @ widest, kind="stable")]
    for half in (ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]):
        yield from neighbourhoods(x, half)

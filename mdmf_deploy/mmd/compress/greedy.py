"""Choose the points to keep, greedily: each step brings the compressed bank's mean embedding nearest to the bank's.

Let u_1, u_2, ... be the kernel's Newton basis on the points taken (columns of the Cholesky factor of K + lambda),
g = z - sum_i c_i u_i the remainder of the mean embedding and r = 1 + lambda - sum_i u_i^2 the posterior variance. Then

    MMD(R, R')^2 = C - sum_i c_i^2,   and taking x next lowers it by g(x)^2 / r(x).

The greedy rule takes the point that lowers it most. This is orthogonal least squares, known as f/P-greedy (Wenzel,
Santin, Haasdonk 2022) and as sequential Bayesian quadrature (Huszar and Duvenaud 2012). Steps are taken in blocks. A
block follows the rule exactly within a pool of the best candidates, until one outside the pool could be better. Then
one GEMM updates all candidates.

A large bank has too many candidates, because the cost grows with the square of the points taken. `name_candidates` cuts
it into neighbourhoods and lets each name its own best points. A narrow kernel hardly sees beyond a neighbourhood, so
these are nearly the points that a choice among all candidates would take.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.mmd.compress.kernel import CentredPoints, Floats, GaussianKernel, Workers, multiply

# Added to the kernel's diagonal, to keep duplicates out and weights small. Costs lambda |w|^2 of MMD^2, about 1e-11.
REGULARISER = 1e-9
# A candidate with less variance than this is already explained by the points taken.
_SPENT = 10.0 * REGULARISER
_BLOCK = 256
# Candidates in the pool per step of a block.
_POOL = 2
# Most points of a neighbourhood.
NEIGHBOURHOOD = 3072
# A neighbourhood may name this many times its even share of the points.
_SHARES = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """Points in the order in which they were taken. Every prefix is a choice, too.

    order: (m,), index into the candidates.
    factor: (m, m), whose lower triangle is the Cholesky factor of K + lambda.
    remaining: (m,), MMD^2 left after each point, as computed on the way.
    """

    order: NDArray[np.intp]
    factor: Floats
    remaining: Floats


def choose(
    points: CentredPoints,
    z: Floats,
    self_term: float,
    kernel: GaussianKernel,
    run: Workers,
    *,
    most: int,
    enough: float = -np.inf,
) -> Choice:
    """Choose at most `most` of the n candidates. Stop when MMD^2 is down to `enough`, or all others are explained.

    points: (n, d). z: (n,), the bank's mean embedding at the candidates.
    At least one point is chosen, even if `most` or `enough` asks for none, or no point lowers MMD^2.
    Time O(n m^2), memory O(n m).
    """
    n = len(points)
    most = min(max(most, 1), n)
    basis = np.empty((n, most))
    # All arrays are kept in one arrangement: points taken come first, in the order taken.
    order, x, norms = np.arange(n), points.x.copy(), points.gamma_norms.copy()
    left, variance = z.copy(), np.full(n, 1.0 + REGULARISER)
    arranged = CentredPoints(x, norms)
    remaining = [self_term]
    m = 0
    while m == 0 or (m < most and remaining[-1] > enough):
        gain = np.where(variance[m:] > _SPENT, left[m:] ** 2 / np.maximum(variance[m:], _SPENT), 0.0)
        size = min(max(16, m // 8), _BLOCK, most - m)
        pool, rival = _best(gain, _POOL * size)
        if not len(pool):
            if m:
                break
            pool = np.zeros(1, np.intp)
        pool += m
        inner = _residual(basis[pool, :m], arranged[pool], kernel, run)
        taken, factor, coefficients = _steps(inner, left[pool], size, rival, remaining[-1] - enough)
        end = m + len(taken)
        to, source = _moves(m, pool[taken])
        for array in (order, x, norms, left, variance):
            array[to] = array[source]
        basis[to, :m] = basis[source, :m]
        basis[m:end, m:end] = factor
        if end < n:
            variance[end:] -= _extend(basis, m, end, arranged, kernel, run)
            left[end:] -= basis[end:, m:end] @ coefficients
        remaining += list(remaining[-1] - np.cumsum(coefficients**2))
        m = end
    return Choice(order[:m], basis[:m, :m], np.array(remaining[1:]))


def _moves(m: int, taken: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return destinations and sources of rows, so that those taken move to m, m + 1, ... and none is lost."""
    window = np.arange(m, m + len(taken))
    return (
        np.concatenate([window, np.setdiff1d(taken, window)]),
        np.concatenate([taken, np.setdiff1d(window, taken)]),
    )


def _best(gain: Floats, count: int) -> tuple[NDArray[np.intp], float]:
    """Return the places of the `count` largest gains, as far as they are positive, and the next largest gain."""
    if count >= len(gain):
        return np.flatnonzero(gain > 0.0), 0.0
    ranked = np.argpartition(-gain, count)
    pool = np.sort(ranked[:count])
    return pool[gain[pool] > 0.0], float(gain[ranked[count]])


def _residual(basis: Floats, points: CentredPoints, kernel: GaussianKernel, run: Workers) -> Floats:
    """Return the part of the kernel between p points that the basis does not explain, (p, p)."""
    inner = run.rows(lambda rows: kernel.values(points[rows], points) - basis[rows] @ basis.T, len(points))
    inner[np.diag_indices_from(inner)] += REGULARISER
    return inner


def _steps(inner: Floats, left: Floats, most: int, rival: float, excess: float) -> tuple[list[int], Floats, Floats]:
    """Take at least one greedy step within a pool of p candidates whose residual kernel is inner, (p, p).

    Stop when the rival outside the pool could be better, or MMD^2 is down by the excess.
    Returns the places taken, their (k, k) Cholesky factor and their coefficients, (k,).
    """
    variance = np.diag(inner).copy()
    left = left.copy()
    free = np.ones(len(inner), bool)
    columns = np.empty((len(inner), most))
    taken: list[int] = []
    coefficients: list[float] = []
    for k in range(most):
        gain = np.where(free, left**2 / np.maximum(variance, _SPENT), -1.0)
        best = int(gain.argmax())
        if k and (gain[best] < rival or gain[best] <= 0.0 or excess <= 0.0):
            break
        root = float(np.sqrt(max(variance[best], _SPENT)))
        columns[:, k] = (inner[:, best] - columns[:, :k] @ columns[best, :k]) / root
        c = float(left[best]) / root
        left -= c * columns[:, k]
        variance -= columns[:, k] ** 2
        free[best] = False
        free &= variance > _SPENT
        taken.append(best)
        coefficients.append(c)
        excess -= c * c
    return taken, np.tril(columns[taken, : len(taken)]), np.array(coefficients)


def _extend(basis: Floats, m: int, end: int, points: CentredPoints, kernel: GaussianKernel, run: Workers) -> Floats:
    """Fill columns m to end of the basis below row end, and return the sums of their squares per row.

    Rows m to end hold the points of these columns.
    """
    new, known = points[m:end], basis[m:end, :m]
    inverse = np.linalg.inv(basis[m:end, m:end]).T

    def fill(tile: slice) -> Floats:
        rows = slice(end + tile.start, end + tile.stop)
        fresh = (kernel.values(points[rows], new) - basis[rows, :m] @ known.T) @ inverse
        basis[rows, m:end] = fresh
        squares: Floats = np.einsum("nk,nk->n", fresh, fresh)
        return squares

    return run.rows(fill, len(points) - end)


@dataclass(frozen=True, slots=True)
class Named:
    """Candidates ordered by how much they lower the MMD^2 of their neighbourhoods, most first.

    places: (k,).
    remaining: (k,), an estimate of MMD^2 left after each, as if neighbourhoods did not see each other.
    """

    places: NDArray[np.intp]
    remaining: Floats


def name_candidates(points: CentredPoints, weights: Floats, kernel: GaussianKernel, run: Workers, most: int) -> Named:
    """Name at most `most` of the n points: those that lower MMD^2 most, each seen from its own neighbourhood.

    points: (n, d). weights: (n,), as in the bank.
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
    """Cut the places in half across their widest direction, again and again, down to a few thousand each."""
    if len(places) <= NEIGHBOURHOOD:
        yield places
        return
    own = x[places] - x[places].mean(axis=0)
    widest = np.linalg.eigh(own.T @ own)[1][:, -1]
    ranked = places[np.argsort(own @ widest, kind="stable")]
    for half in (ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]):
        yield from neighbourhoods(x, half)

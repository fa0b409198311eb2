"""Which points to keep: those that bring the compressed bank's mean embedding nearest to the bank's, step by step.

With u_1, u_2, ... the kernel's Newton basis on the points taken so far (columns of the Cholesky factor of K + lambda),
g = z - sum_i c_i u_i what they leave of the mean embedding and r = 1 + lambda - sum_i u_i^2 the posterior variance,

    MMD(R, R')^2 = C - sum_i c_i^2,   and taking x next lowers it by g(x)^2 / r(x).

The greedy rule takes the largest: orthogonal least squares, known as f/P-greedy (Wenzel, Santin, Haasdonk 2022) and as
sequential Bayesian quadrature (Huszar and Duvenaud 2012).  Steps are taken in blocks: exactly so within a pool of the
best candidates, until one outside of it could be better; then one GEMM brings all candidates up to date.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.mmd.compress.kernel import Floats, Kernel, Points, Workers

# Added to the kernel's diagonal: keeps duplicates out and weights small, and costs lambda |w|^2 of MMD^2, say 1e-11.
REGULARISER = 1e-9
# A candidate with less variance left than this is one that the others explain already.
_SPENT = 10.0 * REGULARISER
_BLOCK = 256
# Candidates looked at for every step of a block.
_POOL = 2


@dataclass(frozen=True, slots=True)
class Choice:
    """Points in the order in which they were taken, every prefix of which is a choice too.

    order: (m,) index into the candidates.  factor: (m, m), its lower triangle the Cholesky factor of K + lambda.
    remaining: (m,) MMD^2 left after each, as computed on the way.
    """

    order: NDArray[np.intp]
    factor: Floats
    remaining: Floats


def choose(
    points: Points, z: Floats, self_term: float, kernel: Kernel, run: Workers, *, most: int, enough: float = -np.inf
) -> Choice:
    """At most `most` >= 1 of the n candidates; fewer where MMD^2 comes down to `enough`, or all others are explained.

    At least one, even if `enough` asks for none or none lowers MMD^2.

    points: (n, d).  z: (n,) the bank's mean embedding at them.  Time O(n m^2), memory O(n m).
    """
    n = len(points)
    most = min(most, n)
    basis = np.empty((n, most))
    # Points taken come first, in their order: every array is kept in that arrangement.
    order, x, norms = np.arange(n), points.x.copy(), points.gamma_norms.copy()
    left, variance = z.copy(), np.full(n, 1.0 + REGULARISER)
    arranged = Points(x, norms)
    remaining = [self_term]
    m = 0
    # The first step is always taken: a bank has at least one point.
    while m == 0 or (m < most and remaining[-1] > enough):
        gain = np.where(variance[m:] > _SPENT, left[m:] ** 2 / np.maximum(variance[m:], _SPENT), 0.0)
        size = min(max(16, m // 8), _BLOCK, most - m)
        pool, rival = _best(gain, _POOL * size)
        if not len(pool) and m:
            break
        pool = pool + m if len(pool) else np.zeros(1, np.intp)
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
    """Where to put rows, and from where, so that those taken come to lie at m, m + 1, ... and none is lost."""
    window = np.arange(m, m + len(taken))
    return (
        np.concatenate([window, np.setdiff1d(taken, window)]),
        np.concatenate([taken, np.setdiff1d(window, taken)]),
    )


def _best(gain: Floats, count: int) -> tuple[NDArray[np.intp], float]:
    """Where the `count` largest gains are, all of them positive, and the largest of the others."""
    if count >= len(gain):
        return np.flatnonzero(gain > 0.0), 0.0
    ranked = np.argpartition(-gain, count)
    pool = np.sort(ranked[:count])
    return pool[gain[pool] > 0.0], float(gain[ranked[count]])


def _residual(basis: Floats, points: Points, kernel: Kernel, run: Workers) -> Floats:
    """What the basis leaves of the kernel between p points, (p, p)."""
    inner = run.rows(lambda rows: kernel.values(points[rows], points) - basis[rows] @ basis.T, len(points))
    inner[np.diag_indices_from(inner)] += REGULARISER
    return inner


def _steps(inner: Floats, left: Floats, most: int, rival: float, excess: float) -> tuple[list[int], Floats, Floats]:
    """Greedy steps within a pool of p candidates, whose residual kernel is inner, (p, p): at least one.

    They end when the rival outside could be better, or MMD^2 has come down by the excess.
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


def _extend(basis: Floats, m: int, end: int, points: Points, kernel: Kernel, run: Workers) -> Floats:
    """Fill columns m ... end of the basis below row end, where the points of these columns lie; sums of squares."""
    new, known = points[m:end], basis[m:end, :m]
    inverse = np.linalg.inv(basis[m:end, m:end]).T

    def fill(tile: slice) -> Floats:
        rows = slice(end + tile.start, end + tile.stop)
        fresh = (kernel.values(points[rows], new) - basis[rows, :m] @ known.T) @ inverse
        basis[rows, m:end] = fresh
        squares: Floats = np.einsum("nk,nk->n", fresh, fresh)
        return squares

    return run.rows(fill, len(points) - end)

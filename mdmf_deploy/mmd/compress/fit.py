"""Compress a bank: choose points, fit their weights, and bound the error of every score.

The error bound is |MMD(X, R') - MMD(X, R)| <= MMD(R, R') for every image X. The weights w = (K + lambda)^-1 z minimise
MMD(R, R')^2 = C - 2 w'z + w'Kw (Nystrom mean embedding; Chatalic et al. 2022). The bound is then computed for the very
weights that are stored, and a bound on float64 rounding is added to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd.compress.bank_rows import BankRows, take
from mdmf_deploy.mmd.compress.greedy import REGULARISER, Choice, Named, choose, name_candidates
from mdmf_deploy.mmd.compress.kernel import (
    CentredPoints,
    Embedding,
    Floats,
    GaussianKernel,
    Workers,
    all_cores,
    embed,
    multiply,
)

CANDIDATES = 32_768
# Most candidates in the first trial, unless more points than that are wanted.
FIRST_CANDIDATES = 16_384
# Signatures searched for candidates. A larger bank is sampled.
SAMPLE = 131_072
_SEED = 20260509
_PANEL = 256


class OutOfReach(BankError):
    """No choice of points has an error bound as small as asked for.

    mmd: the best bound reached, with this many points out of this many candidates.
    """

    def __init__(self, mmd: float, points: int, candidates: int, rows: int) -> None:
        super().__init__(
            f"bank: {points} points of {rows} change MMD by up to {mmd:.3g}, the best among {candidates} candidates; "
            "allow more candidates or a larger change"
        )
        self.mmd, self.points, self.candidates = mmd, points, candidates


@dataclass(frozen=True, slots=True)
class Fitted:
    """Points with optimal weights that stand for a bank.

    places: (m,), rows of the bank, ascending.
    signatures: (m, d).
    weights: (m,), signed.
    self_term: w'Kw.
    mmd: the error bound, at least MMD(R, R').
    """

    places: NDArray[np.intp]
    signatures: NDArray[np.float32]
    weights: Floats
    self_term: float
    mmd: float


def compress(
    rows: BankRows,
    sigma: float,
    self_term: float,
    *,
    points: int | None = None,
    max_mmd: float | None = None,
    candidates: int = CANDIDATES,
) -> Fitted:
    """Return the best of the bank's points with optimal weights: at most `points`, or the fewest within max_mmd.

    self_term: the bank's own, sum_jj' v_j v_j' k(r_j, r_j').
    points: at least 1.
    max_mmd: the largest error bound allowed, above 0. At least one point is kept, however large it is.
    candidates: points are chosen among at most this many rows (see greedy.name_candidates), or twice `points` if that
    is more.
    Memory is O(candidates x m), whatever the size of the bank.
    Raises BankError if points is below 1, a value is not finite, max_mmd is out of reach, or memory does not suffice.
    """
    if points is not None and points < 1:
        raise BankError(f"points: expected 1 or more, got {points}")
    candidates = max(candidates, 2 * (points or 0))
    try:
        return _compress(rows, sigma, self_term, points, max_mmd, candidates)
    except MemoryError as error:
        raise BankError(
            f"bank: choosing among {candidates} candidates takes up to "
            f"{8e-9 * candidates * (points or candidates):.0f} GB, more than there is; "
            "give fewer --candidates or --points"
        ) from error


def _compress(
    rows: BankRows, sigma: float, self_term: float, points: int | None, max_mmd: float | None, candidates: int
) -> Fitted:
    places = np.arange(rows.rows) if rows.rows <= SAMPLE else _draw(rows.rows, SAMPLE)
    signatures, weights = take(rows, places)
    kernel = GaussianKernel(sigma, signatures.mean(axis=0, dtype=np.float64))
    searched = kernel.points(signatures)
    with all_cores() as run:
        task = _Task(rows, self_term, kernel, run, points, max_mmd)
        trials = [np.arange(len(places))]
        if len(places) > min(FIRST_CANDIDATES, candidates):
            # Rows outside the sample are assumed to lie where the sample lies.
            mass = weights * (rows.rows / len(weights))
            trials = task.trials(name_candidates(searched, mass, kernel, run, candidates))
        while True:
            among = trials.pop(0)
            try:
                chosen, solution = task.fit(searched[among])
            except OutOfReach:
                if not trials:
                    raise
            else:
                break
    ascending = np.argsort(chosen)
    kept = among[chosen[ascending]]
    return Fitted(places[kept], signatures[kept], solution.weights[ascending], solution.self_term, solution.mmd)


@dataclass(frozen=True, slots=True)
class _Task:
    """A bank, and the number of points or the error bound that its compression has to reach."""

    rows: BankRows
    self_term: float
    kernel: GaussianKernel
    run: Workers
    points: int | None
    max_mmd: float | None

    def trials(self, named: Named) -> list[NDArray[np.intp]]:
        """Return sets of candidates to try, ascending: enough by the estimate of the neighbourhoods, then all."""
        wanted = self.points or 0
        if self.max_mmd is not None:
            reached = named.remaining <= self.max_mmd * self.max_mmd
            wanted = int(np.argmax(reached)) + 1 if reached.any() else len(reached)
        size = max(min(8 * wanted, FIRST_CANDIDATES), wanted + wanted // 8)
        return [np.sort(named.places[:size])] + [np.sort(named.places)] * (size < len(named.places))

    def fit(self, among: CentredPoints) -> tuple[NDArray[np.intp], _Solution]:
        """Choose among these candidates, and fit the weights. Raises OutOfReach."""
        seen = embed(self.rows, among, self.kernel, self.run)
        most = len(among) if self.points is None else self.points
        enough = -np.inf
        if self.max_mmd is not None:
            # The error bound includes rounding. This allowance suffices as long as the weights' mass is at most three
            # times the bank's.
            rounding = (4.0 * seen.mass) ** 2 * self.kernel.rounding(seen.gamma_radius, self.rows.rows)
            enough = 0.99 * (self.max_mmd * self.max_mmd) - rounding
        choice = choose(among, seen.z, self.self_term, self.kernel, self.run, most=most, enough=enough)
        problem = _Problem(self, among, seen, choice)
        solution = problem.solve(len(choice.order)) if self.max_mmd is None else problem.smallest(self.max_mmd)
        return choice.order[: len(solution.weights)], solution


@dataclass(frozen=True, slots=True)
class _Solution:
    """weights: (m,), in the order of the choice. self_term and mmd as in Fitted."""

    weights: Floats
    self_term: float
    mmd: float


@dataclass(frozen=True, slots=True)
class _Problem:
    """A choice of points whose weights have to match the bank's mean embedding."""

    task: _Task
    among: CentredPoints
    seen: Embedding
    choice: Choice

    def solve(self, m: int) -> _Solution:
        """Fit the weights of the first m points of the choice, and bound the error."""
        kernel, run = self.task.kernel, self.task.run
        order, factor = self.choice.order[:m], self.choice.factor[:m, :m]
        points, z = self.among[order], self.seen.z[order]
        weights = _solve(factor, z)
        # One step of refinement, because the factor has gathered rounding from all its columns.
        weights += _solve(factor, z - multiply(points, points, weights, kernel, run) - REGULARISER * weights)
        own = float(weights @ multiply(points, points, weights, kernel, run))
        squared = self.task.self_term - 2.0 * float(weights @ z) + own
        mass = self.seen.mass + float(np.abs(weights).sum())
        rounding = mass**2 * kernel.rounding(self.seen.gamma_radius, max(self.task.rows.rows, m))
        return _Solution(weights, own, float(np.sqrt(max(squared, 0.0) + rounding)))

    def smallest(self, max_mmd: float) -> _Solution:
        """Return the solution with the fewest points whose error bound is within max_mmd. Raises OutOfReach."""
        enough = self.choice.remaining <= max_mmd * max_mmd
        low, high = int(np.argmax(enough)) if enough.any() else len(enough) - 1, len(enough)
        best = self.solve(low + 1)
        if best.mmd <= max_mmd:
            return best
        # Rounding counts here: a few more points have to make up for it.
        best = self.solve(high)
        if best.mmd > max_mmd:
            raise OutOfReach(best.mmd, high, len(self.among), self.task.rows.rows)
        low += 1
        while high - low > 1:
            middle = self.solve((low + high) // 2)
            if middle.mmd <= max_mmd:
                best, high = middle, len(middle.weights)
            else:
                low = len(middle.weights)
        return best


def _solve(factor: Floats, right: Floats) -> Floats:
    """Return (L L')^-1 right for a lower triangular L, (m, m), panel by panel. NumPy has no triangular solver."""
    x = right.copy()
    starts = range(0, len(x), _PANEL)
    for start in starts:
        own = slice(start, start + _PANEL)
        x[own] = np.linalg.solve(np.tril(factor[own, own]), x[own] - factor[own, :start] @ x[:start])
    for start in reversed(starts):
        own, after = slice(start, start + _PANEL), slice(start + _PANEL, None)
        x[own] = np.linalg.solve(np.tril(factor[own, own]).T, x[own] - factor[after, own].T @ x[after])
    return x


def _draw(n: int, size: int) -> NDArray[np.intp]:
    """Draw `size` of n places, ascending, the same ones every time."""
    places = np.random.Generator(np.random.PCG64(_SEED)).choice(n, size, replace=False, shuffle=False)
    return np.sort(places).astype(np.intp)

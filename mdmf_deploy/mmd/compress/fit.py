"""Weights for the points kept, and the certificate: |MMD(X, R') - MMD(X, R)| <= MMD(R, R') for every image X.

w = (K + lambda)^-1 z minimises MMD(R, R')^2 = C - 2 w'z + w'Kw (Nystrom mean embedding; Chatalic et al. 2022), which is
then computed for the very weights that are stored; float64 rounding is added as a bound, not guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import BankError
from mdmf_deploy.mmd.compress.bank_rows import BankRows, take
from mdmf_deploy.mmd.compress.greedy import REGULARISER, Choice, choose
from mdmf_deploy.mmd.compress.kernel import Embedding, Floats, Kernel, Points, Workers, all_cores, embed, multiply
from mdmf_deploy.mmd.compress.neighbourhoods import Named, name_candidates

CANDIDATES = 32_768
_FEW = 16_384
# Signatures that are looked at for candidates: a larger bank is sampled.
SAMPLE = 131_072
_SEED = 20260509
_PANEL = 256


class OutOfReach(BankError):
    """No choice of points certifies the change of MMD asked for.  mmd: the best reached, with so many points."""

    def __init__(self, mmd: float, points: int, candidates: int, rows: int) -> None:
        super().__init__(
            f"bank: {points} points of {rows} change MMD by up to {mmd:.3g}, the best among {candidates} candidates; "
            "allow more candidates or a larger change"
        )
        self.mmd, self.points, self.candidates = mmd, points, candidates


@dataclass(frozen=True, slots=True)
class Fitted:
    """places: (m,) rows of the bank, ascending.  signatures: (m, d).  weights: (m,), signed.

    self_term: w'Kw.  mmd: at least MMD(R, R').
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
    """The best of the bank's points, at most `points` or as few as certify max_mmd, with optimal weights.

    self_term: the bank's own, sum_jj' v_j v_j' k(r_j, r_j').  candidates: points are chosen among at most so many
    of its rows, which mdmf_deploy.mmd.compress.neighbourhoods names; at least twice `points`.
    Memory O(candidates x m), whatever the bank's size.
    Raises BankError if a weight is not finite, max_mmd is out of reach, or memory does not suffice.
    """
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
    kernel = Kernel(sigma, signatures.mean(axis=0, dtype=np.float64))
    looked_at = kernel.points(signatures)
    with all_cores() as run:
        trials = [np.arange(len(places))]
        if len(places) > min(_FEW, candidates):
            mass = weights * (rows.rows / len(weights))  # what a sample leaves out is taken to lie where it lies
            trials = _trials(name_candidates(looked_at, mass, kernel, run, candidates), points, max_mmd)
        while True:
            among = trials.pop(0)
            try:
                chosen, solution = _fit(rows, looked_at[among], kernel, run, self_term, points, max_mmd)
            except OutOfReach:
                if not trials:
                    raise
            else:
                break
    ascending = np.argsort(chosen)
    kept = among[chosen[ascending]]
    return Fitted(places[kept], signatures[kept], solution.weights[ascending], solution.self_term, solution.mmd)


def _fit(
    rows: BankRows,
    among: Points,
    kernel: Kernel,
    run: Workers,
    self_term: float,
    points: int | None,
    max_mmd: float | None,
) -> tuple[NDArray[np.intp], _Solution]:
    """Which of these candidates to keep, and their weights."""
    seen = embed(rows, among, kernel, run)
    most = len(among) if points is None else points
    enough = -np.inf
    if max_mmd is not None:
        # The certificate adds rounding; weights may weigh three times what the bank's do before this is too little.
        rounding = (4.0 * seen.mass) ** 2 * kernel.rounding(seen.gamma_radius, rows.rows)
        enough = 0.99 * (max_mmd * max_mmd) - rounding
    choice = choose(among, seen.z, self_term, kernel, run, most=most, enough=enough)
    problem = _Problem(kernel, among, seen, choice, self_term, rows.rows, run)
    solution = problem.solve(len(choice.order)) if max_mmd is None else problem.smallest(max_mmd)
    return choice.order[: len(solution.weights)], solution


@dataclass(frozen=True, slots=True)
class _Solution:
    """weights: (m,), in the order of the choice.  self_term and mmd as in Fitted."""

    weights: Floats
    self_term: float
    mmd: float


@dataclass(frozen=True, slots=True)
class _Problem:
    """A choice of points, and what their weights have to match."""

    kernel: Kernel
    among: Points
    seen: Embedding
    choice: Choice
    self_term: float
    rows: int
    run: Workers

    def solve(self, m: int) -> _Solution:
        """The first m points of the choice, with their weights and certificate."""
        order, factor = self.choice.order[:m], self.choice.factor[:m, :m]
        points, z = self.among[order], self.seen.z[order]
        weights = _solve(factor, z)
        # One step of refinement: the factor has gathered rounding from all its columns.
        weights += _solve(factor, z - multiply(points, points, weights, self.kernel, self.run) - REGULARISER * weights)
        own = float(weights @ multiply(points, points, weights, self.kernel, self.run))
        squared = self.self_term - 2.0 * float(weights @ z) + own
        mass = self.seen.mass + float(np.abs(weights).sum())
        rounding = mass**2 * self.kernel.rounding(self.seen.gamma_radius, max(self.rows, m))
        return _Solution(weights, own, float(np.sqrt(max(squared, 0.0) + rounding)))

    def smallest(self, max_mmd: float) -> _Solution:
        """The fewest points that certify max_mmd.  Raises OutOfReach."""
        enough = self.choice.remaining <= max_mmd * max_mmd
        low, high = int(np.argmax(enough)) if enough.any() else len(enough) - 1, len(enough)
        best = self.solve(low + 1)
        if best.mmd <= max_mmd:
            return best
        # Rounding counts here: a few more points have to make up for it.
        best = self.solve(high)
        if best.mmd > max_mmd:
            raise OutOfReach(best.mmd, high, len(self.among), self.rows)
        low += 1
        while high - low > 1:
            middle = self.solve((low + high) // 2)
            if middle.mmd <= max_mmd:
                best, high = middle, len(middle.weights)
            else:
                low = len(middle.weights)
        return best


def _trials(named: Named, points: int | None, max_mmd: float | None) -> list[NDArray[np.intp]]:
    """Candidates to choose among, ascending: enough by the neighbourhoods' own estimate, then all of them."""
    wanted = points or 0
    if max_mmd is not None:
        reached = named.remaining <= max_mmd * max_mmd
        wanted = int(np.argmax(reached)) + 1 if reached.any() else len(reached)
    size = max(min(8 * wanted, _FEW), wanted + wanted // 8)
    return [np.sort(named.places[:size])] + [np.sort(named.places)] * (size < len(named.places))


def _solve(factor: Floats, right: Floats) -> Floats:
    """(L L')^-1 right for a lower triangular L, (m, m), panel by panel: NumPy has no triangular solve."""
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
    """size of n places, ascending, the same ones every time."""
    places = np.random.Generator(np.random.PCG64(_SEED)).choice(n, size, replace=False, shuffle=False)
    return np.sort(places).astype(np.intp)

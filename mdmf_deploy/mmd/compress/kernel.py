"""Kernel values in float64, tile by tile on all cores, with the same bits for any number of threads.

Distances come from the GEMM identity on centred points. `GaussianKernel.rounding` bounds the error of this and of the
sums, so that the error bound of a compressed bank really is a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.hardware.host import cores
from mdmf_deploy.mmd.compress.bank_rows import BankRows, blocks
from mdmf_deploy.mmd.threads import one_blas_thread

Floats = NDArray[np.float64]
Item = TypeVar("Item")
Result = TypeVar("Result")
# 256 x 1024 kernel values in float64 are 2 MB: the second-level cache of one core.
_ROWS = 256
_COLUMNS = 1024


@dataclass(frozen=True, slots=True)
class CentredPoints:
    """Points relative to a centre. x: (n, d). gamma_norms: (n,), |x|^2 / (2 sigma^2)."""

    x: Floats
    gamma_norms: Floats

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> CentredPoints:
        return CentredPoints(self.x[rows], self.gamma_norms[rows])


@dataclass(frozen=True, slots=True)
class GaussianKernel:
    """k(a, b) = exp(-|a - b|^2 / (2 sigma^2)), of points relative to centre, (d,)."""

    sigma: float
    centre: Floats

    def points(self, signatures: NDArray[np.float32]) -> CentredPoints:
        """Centre (n, d) signatures for `values`."""
        x = signatures - self.centre
        return CentredPoints(x, np.einsum("nd,nd->n", x, x) / (2.0 * self.sigma**2))

    def values(self, a: CentredPoints, b: CentredPoints) -> Floats:
        """Return k(a_i, b_j), (n, m)."""
        out: Floats = (a.x / self.sigma**2) @ b.x.T
        out -= a.gamma_norms[:, None]
        out -= b.gamma_norms[None]
        # Rounding can lift an exponent slightly above zero, but a kernel value is at most 1.
        np.minimum(out, 0.0, out=out)
        np.exp(out, out=out)
        return out

    def rounding(self, gamma_radius: float, terms: int) -> float:
        """Return the largest error of a sum of v_i w_j k(a_i, b_j) with sum |v_i| = sum |w_j| = 1.

        gamma_radius: the largest gamma_norms among the points. terms: the most terms of either sum.
        Norms, products and centring err by at most (4 d + 32) u of the largest gamma |x|^2 in the exponent, exp by 4 u,
        and a sum of n terms in any order by n u of the absolute values of its terms (Higham 2002, section 4.2). The
        result is doubled to cover terms of second order.
        """
        unit = float(np.finfo(np.float64).eps) / 2.0
        return 2.0 * unit * ((4 * len(self.centre) + 32) * max(gamma_radius, 1.0) + 4 + 2.0 * terms)


class Workers:
    """Share work over a pool of threads, or do it on the calling thread. Results come in order either way."""

    def __init__(self, pool: ThreadPoolExecutor | None = None) -> None:
        self._map = map if pool is None else pool.map

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Apply the function to every item."""
        return list(self._map(function, items))

    def rows(self, function: Callable[[slice], Floats], n: int) -> Floats:
        """Apply the function to slices of n rows, and join the results."""
        return np.concatenate(
            self.each(function, [slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS)])
        )


@contextmanager
def all_cores() -> Iterator[Workers]:
    """Provide workers on all cores, with one BLAS thread each, because BLAS results depend on its number of threads."""
    with one_blas_thread(), ThreadPoolExecutor(cores()) as pool:
        yield Workers(pool)


@dataclass(frozen=True, slots=True)
class Embedding:
    """A bank's mean embedding, evaluated at n points.

    z: (n,), sum_j v_j k(x_i, r_j).
    mass: sum_j |v_j|.
    gamma_radius: the largest gamma |r_j|^2, including these points.
    """

    z: Floats
    mass: float
    gamma_radius: float


def embed(rows: BankRows, points: CentredPoints, kernel: GaussianKernel, run: Workers) -> Embedding:
    """Evaluate the mean embedding in one pass over the bank. Memory is one block, and one tile per core."""
    z = np.zeros(len(points))
    mass, radius = 0.0, float(points.gamma_norms.max())
    for signatures, weights in blocks(rows):
        block = kernel.points(signatures)
        mass += float(np.abs(weights).sum())
        radius = max(radius, float(block.gamma_norms.max()))
        z += multiply(points, block, weights, kernel, run)
    return Embedding(z, mass, radius)


def multiply(a: CentredPoints, b: CentredPoints, weights: Floats, kernel: GaussianKernel, run: Workers) -> Floats:
    """Return k(a, b) times weights, (n,), without storing the n x m matrix."""

    def rows(own: slice) -> Floats:
        total = np.zeros(own.stop - own.start)
        for start in range(0, len(b), _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            total += kernel.values(a[own], b[columns]) @ weights[columns]
        return total

    return run.rows(rows, len(a))

"""The specification in float64, slow and plain. Every other reduction is measured against it.

    c_i   = A_i - 2 B_i + C,   A_i = 1/N sum_i' k(x_i, x_i'),   B_i = sum_j w_j k(x_i, r_j),
    MMD^2 = 1/N sum_i c_i,     k(a, b) = exp(-|a - b|^2 / (2 sigma^2)),
    C     = sum_jj' w_j w_j' k(r_j, r_j'), cached in the bank.

Biased squared MMD: Gretton et al., JMLR 13 (2012), eq. 5. See docs/method.md, "Shares of patches".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.errors import BankError
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.mmd import Scores, check_shape
from mdmf_deploy.mmd.threads import one_blas_thread, share_out

_TILE = 512
# Signatures whose pairs take seconds.
MOST_CHECKED = 16_384


def gaussian_kernel(a: NDArray[np.floating], b: NDArray[np.floating], sigma: float) -> NDArray[np.float64]:
    """Return k(a_i, b_j), (n, d) and (m, d) -> (n, m), in float64 from direct differences, not the GEMM identity."""
    a64, b64 = np.asarray(a, np.float64), np.asarray(b, np.float64)
    squared = np.empty((len(a64), len(b64)))
    for i, row in enumerate(a64):
        difference = b64 - row
        squared[i] = np.einsum("md,md->m", difference, difference)
    kernel: NDArray[np.float64] = np.exp(squared / (-2.0 * sigma * sigma))
    return kernel


def bank_self_term(signatures: NDArray[np.floating], weights: NDArray[np.float64], sigma: float) -> float:
    """Return sum_jj' w_j w_j' k(r_j, r_j') over (M, d) signatures, in float64.

    Time O(M^2 d), memory for a few tiles per thread. Distances come from the GEMM identity on signatures centred on
    their mean. In float64 its rounding is below 1e-12 of a kernel value, and M^2 direct differences would take minutes.
    The bits do not depend on the number of threads.
    """
    m = len(signatures)
    centre = np.mean(signatures, axis=0, dtype=np.float64)
    gamma = 1.0 / (2.0 * sigma * sigma)
    shares = np.zeros(-(-m // _TILE))

    def points(start: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        centred = signatures[start : start + _TILE] - centre
        return centred, gamma * np.einsum("md,md->m", centred, centred)

    def add_up(tasks: Iterator[int]) -> None:
        for task in tasks:
            first = task * _TILE
            rows, row_norms = points(first)
            rows *= 2.0 * gamma
            for start in range(first, m, _TILE):
                columns, norms = points(start)
                exponent = rows @ columns.T
                exponent -= row_norms[:, None]
                exponent -= norms
                np.exp(np.minimum(exponent, 0.0, out=exponent), out=exponent)
                share = weights[first : first + _TILE] @ exponent @ weights[start : start + _TILE]
                shares[task] += share if start == first else 2.0 * share

    with one_blas_thread():
        share_out(len(shares), cores(), add_up)
    return float(shares.sum())


def check_self_term(bank: Bank, name: str) -> None:
    """Compute a bank's self term again, of all pairs. Reading a large bank only draws some (bundle/self_term.py).

    A bank of more than MOST_CHECKED signatures is left at that.
    Raises BankError naming the file if the term is off by more than rounding.
    """
    if len(bank.weights) > MOST_CHECKED:
        return
    found = bank_self_term(bank.signatures, bank.weights, bank.sigma)
    if abs(found - bank.self_term) > 1e-6 * float(np.abs(bank.weights).sum()) ** 2:
        raise BankError(
            f"{name}: its self term is {bank.self_term:.9g}, and its points give {found:.9g}; "
            "build the bank again with `mdmf bank build`"
        )


def uniform_bank(
    signatures: NDArray[np.float32],
    sigma: float,
    *,
    source: NDArray[np.int32],
    sources: tuple[BankSource, ...],
    model_sha256: str,
) -> Bank:
    """Return a bank of equal weights 1/M, with its self term.

    signatures: (M, d). The other arguments are the fields of Bank.
    Raises BankError without signatures, and as Bank does.
    """
    m = len(signatures)
    if m == 0:
        raise BankError("bank: no signatures; give at least one readable real image")
    weights = np.full(m, 1.0 / m)
    self_term = bank_self_term(signatures, weights, sigma)
    return Bank(signatures, weights, sigma, self_term, source, sources, model_sha256)


class ReferenceReduction:
    """The reduction in float64, one image at a time, without the GEMM identity."""

    name = "reference"

    def __call__(self, signatures: NDArray[np.float32], bank: Bank) -> Scores:
        check_shape(signatures.shape, bank)
        contributions = np.empty(signatures.shape[:2])
        for image, x in enumerate(signatures):
            within = gaussian_kernel(x, x, bank.sigma).mean(axis=1)
            cross = gaussian_kernel(x, bank.signatures, bank.sigma) @ bank.weights
            contributions[image] = within - 2.0 * cross + bank.self_term
        return Scores(contributions.mean(axis=1), contributions)

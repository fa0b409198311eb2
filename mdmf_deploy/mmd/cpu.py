"""The reduction on a CPU: NumPy tiles, no N x M matrix, one image's arithmetic independent of its batch.

    out[n] = 1/N sum_n' k(x[n], x[n']) - 2 sum_m w[m] k(x[n], r[m]) + C,   k(a, b) = exp(-|a - b|^2 / (2 sigma^2))

Appending (-g|x|^2, 1) to x and (1, -g|r|^2) to r, g = 1 / (2 sigma^2), lets one GEMM give the exponent; everything is
centred on the bank's mean first, which keeps the cancellation in float32 small.
Reference: mdmf_deploy.mmd.reference.ReferenceReduction (float64).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bank import Bank
from mdmf_deploy.mmd import Scores, check_shapes
from mdmf_deploy.mmd.reference import gaussian_kernel

# 64 patches x 2048 points in float32 is 512 KB: a tile of kernel values stays in the second-level cache.
_TILE = 2048


class NumpyReduction:
    """float32 kernel values, float64 sums; prepares each bank once."""

    name = "numpy"

    def __init__(self) -> None:
        self._bank: Bank | None = None

    def _prepare(self, bank: Bank) -> None:
        if self._bank is bank:
            return
        self._mean = bank.signatures.mean(axis=0, dtype=np.float64)
        self._gamma = 1.0 / (2.0 * bank.sigma * bank.sigma)
        centred = bank.signatures - self._mean
        norms = np.einsum("md,md->m", centred, centred)
        augmented = np.column_stack([2.0 * self._gamma * centred, np.ones_like(norms), -self._gamma * norms])
        self._points = np.ascontiguousarray(augmented.T, dtype=np.float32)
        self._weights = bank.weights
        self._bank = bank

    def _cross(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """sum_m w[m] k(x[n], r[m]); (N, d) -> (N,)."""
        centred = x - self._mean
        norms = np.einsum("nd,nd->n", centred, centred)
        augmented = np.column_stack([centred, -self._gamma * norms, np.ones_like(norms)]).astype(np.float32)
        total = np.zeros(len(x))
        for start in range(0, self._points.shape[1], _TILE):
            tile = augmented @ self._points[:, start : start + _TILE]
            # Rounding can lift an exponent a little above zero; a kernel value is at most 1.
            np.minimum(tile, 0.0, out=tile)
            np.exp(tile, out=tile)
            total += tile @ self._weights[start : start + _TILE]
        return total

    def __call__(self, signatures: NDArray[np.float32], bank: Bank) -> Scores:
        check_shapes(signatures, bank)
        self._prepare(bank)
        contributions = np.empty(signatures.shape[:2])
        for image, x in enumerate(signatures):
            within = gaussian_kernel(x, x, bank.sigma).mean(axis=1)
            contributions[image] = within - 2.0 * self._cross(x) + bank.self_term
        return Scores(contributions.mean(axis=1), contributions)

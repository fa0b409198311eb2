"""The reduction on a CPU: NumPy tiles, no N x M matrix, one image's arithmetic independent of its batch.

    out[n] = 1/N sum_n' k(x[n], x[n']) - 2 sum_m w[m] k(x[n], r[m]) + C,   k(a, b) = exp(-|a - b|^2 / (2 sigma^2))

Appending (-g|x|^2, 1) to x and (1, -g|r|^2) to r, g = 1 / (2 sigma^2), lets one GEMM give the exponent; everything is
centred on the bank's mean first, which keeps the cancellation small. A rounding error of the exponent is about
eps g |r|^2, so a bank much wider than its bandwidth takes that GEMM in float64, at twice the time.
Reference: mdmf_deploy.mmd.reference.ReferenceReduction (float64).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bank import Bank
from mdmf_deploy.mmd import Scores, check_shapes

# 64 patches x 1024 points in float32 is 256 KB: a tile of kernel values stays in the second-level cache.
_TILE = 1024
# Largest g |r|^2 whose float32 rounding stays that of a kernel value; a median-distance bandwidth gives about 0.25.
_STEEP = 4.0


class _Prepared:
    """What does not depend on the image: the bank's centred, augmented points in contiguous tiles (d + 2, <= _TILE)."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.mean = bank.signatures.mean(axis=0, dtype=np.float64)
        self.gamma = 1.0 / (2.0 * bank.sigma * bank.sigma)
        centred = bank.signatures - self.mean
        norms = np.einsum("md,md->m", centred, centred)
        self.dtype: type[np.floating] = np.float64 if self.gamma * norms.max() > _STEEP else np.float32
        augmented = np.column_stack([2.0 * self.gamma * centred, np.ones_like(norms), -self.gamma * norms])
        self.tiles: list[tuple[NDArray[Any], NDArray[np.float64]]] = [
            (
                np.ascontiguousarray(augmented[start : start + _TILE].T, dtype=self.dtype),
                bank.weights[start : start + _TILE],
            )
            for start in range(0, len(augmented), _TILE)
        ]

    def score(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """One image's contributions; (N, d) -> (N,)."""
        centred = x - self.mean
        norms = np.einsum("nd,nd->n", centred, centred)
        # Patches of one image are few: float64 costs nothing here.
        squared = norms[:, None] + norms[None] - 2.0 * centred @ centred.T
        within = np.exp(-self.gamma * np.maximum(squared, 0.0)).mean(axis=1)
        augmented = np.column_stack([centred, -self.gamma * norms, np.ones_like(norms)]).astype(self.dtype)
        cross = np.zeros(len(x))
        exponents = np.empty((len(x), _TILE), self.dtype)
        values = np.empty((len(x), _TILE), np.float32)
        for points, weights in self.tiles:
            exponent = np.matmul(augmented, points, out=exponents[:, : len(weights)])
            # Rounding can lift an exponent a little above zero; a kernel value is at most 1.
            kernel = np.minimum(exponent, 0.0, out=values[:, : len(weights)], casting="same_kind")
            np.exp(kernel, out=kernel)
            cross += kernel @ weights
        contributions: NDArray[np.float64] = within - 2.0 * cross + self.bank.self_term
        return contributions


class NumpyReduction:
    """float32 kernel values, float64 sums; prepares each bank once."""

    name = "numpy"

    def __init__(self) -> None:
        self._prepared: _Prepared | None = None

    def __call__(self, signatures: NDArray[np.float32], bank: Bank) -> Scores:
        check_shapes(signatures, bank)
        prepared = self._prepared
        if prepared is None or prepared.bank is not bank:
            prepared = self._prepared = _Prepared(bank)
        contributions = np.empty(signatures.shape[:2])
        for image, x in enumerate(signatures):
            contributions[image] = prepared.score(x)
        return Scores(contributions.mean(axis=1), contributions)

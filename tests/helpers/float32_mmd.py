"""The baseline of the tolerance rule: a float32 reduction may have at most twice its error, with a floor."""

from __future__ import annotations

import numpy as np

from mdmf_deploy.bundle.bank import Bank

EPS = float(np.finfo(np.float32).eps)


def naive_float32(x: np.ndarray, bank: Bank) -> np.ndarray:
    """Return contributions in plain NumPy, (N, d) -> (N,): direct differences, one kernel matrix, float32 sums."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squared = ((a[:, None] - b[None]) ** 2).sum(-1, dtype=np.float32)
        return np.exp(-squared / np.float32(2 * bank.sigma**2))

    weights = bank.weights.astype(np.float32)
    return kernel(x, x).mean(1) - 2 * kernel(x, bank.signatures) @ weights + np.float32(bank.self_term)

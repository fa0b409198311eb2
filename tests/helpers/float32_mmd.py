"""The baseline that float32 reductions are held to (STYLE.md, habit 7)."""

from __future__ import annotations

import numpy as np

from mdmf_deploy.bundle.bank import Bank

EPS = float(np.finfo(np.float32).eps)


def naive_float32(x: np.ndarray, bank: Bank) -> np.ndarray:
    """Contributions in plain NumPy: direct differences, one kernel matrix, float32 sums. (N, d) -> (N,)."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squared = ((a[:, None] - b[None]) ** 2).sum(-1, dtype=np.float32)
        return np.exp(-squared / np.float32(2 * bank.sigma**2))

    weights = bank.weights.astype(np.float32)
    return kernel(x, x).mean(1) - 2 * kernel(x, bank.signatures) @ weights + np.float32(bank.self_term)

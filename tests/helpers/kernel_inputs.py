"""Random signatures and banks for tests of the GPU kernels, and the exact results for given operands."""

from __future__ import annotations

import numpy as np

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.mmd.cuda.kernels import PreparedBank, widened


def bank_of(signatures: np.ndarray, sigma: float, weights: np.ndarray | None = None, self_term: float = 0.37) -> Bank:
    """Return a bank with a made-up self term: the true one takes longer than everything else, and is only added."""
    m = len(signatures)
    weights = np.full(m, 1 / m) if weights is None else np.asarray(weights, np.float64)
    sources = (BankSource("a.png", "0" * 64),)
    return Bank(signatures.astype(np.float32), weights, sigma, self_term, np.zeros(m, np.int32), sources, "1" * 64)


def draw(
    seed: int, images: int, patches: int, points: int, width: int, *, bandwidth: float = 1.0, signed: bool = False
) -> tuple[np.ndarray, Bank]:
    """Return signatures and a bank, off centre like learnt ones. bandwidth: in units of the median distance."""
    generator = np.random.default_rng(seed)
    spread = 10.0 ** generator.uniform(-2, 2)
    centre = generator.uniform(-3, 3, width)
    x = spread * (generator.normal(0.1, 1.1, (images, patches, width)) + centre)
    r = spread * (generator.normal(0.0, 1.0, (points, width)) + centre)
    weights = generator.normal(0, 1 / points, points) if signed else None
    return x.astype(np.float32), bank_of(r, bandwidth * spread * (2 * width) ** 0.5, weights)


def kernel_values(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return k of prepared values, (n, d) and (m, d) -> (n, m), in float64 from direct differences."""
    return np.exp2([-0.5 * np.einsum("md,md->m", b - row, b - row) for row in a])


def exact_cross(values: np.ndarray, prepared: PreparedBank, operand: str) -> tuple[np.ndarray, np.ndarray]:
    """Return sum_m w_m k and sum_m |w_m| k of prepared values, (rows, d), both (rows,), with the prepared weights."""
    k = kernel_values(np.asarray(values, np.float64), widened(prepared.operands, operand))
    weights = prepared.weights.astype(np.float64)
    return k @ weights, k @ np.abs(weights)

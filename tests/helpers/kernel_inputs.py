"""Signatures and banks as the GPU kernels' tests draw them, and what the kernels should make of their operands."""

from __future__ import annotations

import numpy as np

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.mmd.cuda.kernels import PreparedBank, widened


def bank_of(signatures: np.ndarray, sigma: float, weights: np.ndarray | None = None, self_term: float = 0.37) -> Bank:
    """Not with its true self term, which would take longer than all else; the kernels only add it."""
    m = len(signatures)
    weights = np.full(m, 1 / m) if weights is None else np.asarray(weights, np.float64)
    sources = (BankSource("a.png", "0" * 64),)
    return Bank(signatures.astype(np.float32), weights, sigma, self_term, np.zeros(m, np.int32), sources, "1" * 64)


def draw(
    seed: int, images: int, patches: int, points: int, width: int, *, bandwidth: float = 1.0, extracted: bool = False
) -> tuple[np.ndarray, Bank]:
    """Signatures off centre, as learnt ones are.  bandwidth: in units of the median distance."""
    generator = np.random.default_rng(seed)
    spread = 10.0 ** generator.uniform(-2, 2)
    centre = generator.uniform(-3, 3, width)
    x = spread * (generator.normal(0.1, 1.1, (images, patches, width)) + centre)
    r = spread * (generator.normal(0.0, 1.0, (points, width)) + centre)
    weights = generator.normal(0, 1 / points, points) if extracted else None
    return x.astype(np.float32), bank_of(r, bandwidth * spread * (2 * width) ** 0.5, weights)


def kernel_values(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """k of operands as prepared, (n, d) and (m, d) -> (n, m), float64, from direct differences."""
    a, b = widened(a), widened(b)
    return np.exp2([-0.5 * np.einsum("md,md->m", b - row, b - row) for row in a])


def exact_cross(operands: np.ndarray, prepared: PreparedBank) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) sum_m w_m k and sum_m |w_m| k, weights in the bank's units."""
    k = kernel_values(operands, prepared.operands)
    weights = prepared.weights.astype(np.float64)
    return k @ weights, k @ np.abs(weights)

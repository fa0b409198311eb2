"""Compare a GPU kernel with float64.

Expected scores come from float64 over the kernel's own operands, rounded as the kernel rounds them. So a mistake in the
kernel is not confused with the rounding of its operand type, which is measured separately, against float64 over the
signatures themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from inputs import KernelInput
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.hardware.device import Device
from mdmf_deploy.mmd import Scores
from mdmf_deploy.mmd.cuda.kernels import LIMITS, Kernel, round_bank, rounded, widened
from mdmf_deploy.mmd.cuda.reduction import CudaReduction
from mdmf_deploy.mmd.reference import ReferenceReduction

Array64 = NDArray[np.float64]
KernelValues = Callable[[Array64, Array64], Array64]

# Largest error of float32 sums and exponentials, and of the polynomial, relative to the sum of a contribution's terms.
SUMS, POLYNOMIAL = 2e-6, 3e-6
# Largest error for an exponent of size 1: steps 2 and 3 add exponents up from their parts (engines/kernels/README.md,
# "How far off").
EXPONENT = {"fp32": 2.0**-21, "fp16x2": 2.0**-19, "fp16": 2.0**-18, "bf16": 2.0**-18}
# Largest relative error of a score with the accurate operands and with 16 bits.
ACCURATE, HALF = 1e-5, 1e-2
_CHUNK = 256  # rows


@dataclass(frozen=True, slots=True)
class Expected:
    """The values that a kernel should return.

    contributions: (B, N).
    cross: (B N,) sums over the bank, in the unit of its prepared weights.
    tolerance: (B, N), the largest error allowed in a contribution.
    """

    contributions: Array64
    cross: Array64
    tolerance: Array64


@dataclass(frozen=True, slots=True)
class KernelCheck:
    """One kernel on several inputs.

    mistakes: one line each. Empty if the kernel is right.
    share: the largest error as a share of its tolerance, on the input named `worst`.
    rounding: the largest relative error of a score next to float64 over the signatures.
    """

    mistakes: list[str]
    share: float
    worst: str
    rounding: float


def check_kernel(device: Device, kernel: Kernel, inputs: Iterable[KernelInput]) -> KernelCheck:
    """Run one kernel on every input. The first one that is not broken also gives the rounding error."""
    inputs = list(inputs)
    reduction = CudaReduction(device, operand=kernel.operand, version=kernel.version)
    mistakes, shares = [], []
    for one in inputs:
        mistake, share = find_mistake(one, kernel, reduction)
        shares.append(share)
        if mistake:
            mistakes.append(f"{one.name}: {mistake}")
    rounding = rounding_error(next(one for one in inputs if not one.broken), reduction)
    if is_accurate(kernel) and not rounding <= ACCURATE:
        mistakes.append(f"a score is off by {rounding:.2g}")
    reduction.close()
    worst = int(np.argmax(shares))
    return KernelCheck(mistakes, shares[worst], inputs[worst].name, rounding)


def is_accurate(kernel: Kernel) -> bool:
    """Whether the kernel's scores must be as accurate as float32 ones."""
    return kernel.operand in ("fp32", "fp16x2")


def find_mistake(
    given: KernelInput, kernel: Kernel, reduce: Callable[[NDArray[np.float32], Bank], Scores]
) -> tuple[str, float]:
    """Return the mistake, "" if there is none, and the largest error as a share of its tolerance."""
    scores = reduce(given.x, given.bank)
    wanted = expected(given, kernel)
    whole = [image for image in range(len(given.x)) if image not in given.broken]
    for image in given.broken:
        if not np.isnan(scores.mmd2[image]):
            return f"image {image} holds a NaN or an infinity, but scores {scores.mmd2[image]}", np.inf
    error = np.abs(scores.contributions - wanted.contributions)[whole] / wanted.tolerance[whole]
    error = np.append(error, np.abs(scores.mmd2 - scores.contributions.mean(axis=1))[whole] / 1e-12)
    share = float(np.max(error)) if np.isfinite(error).all() else np.inf
    again = reduce(given.x, given.bank)
    if not np.array_equal(again.contributions, scores.contributions, equal_nan=True):
        return "the same input gives other bits", share
    return ("" if share <= 1 else f"off by {share:.3g} times the tolerance"), share


def rounding_error(given: KernelInput, reduce: Callable[[NDArray[np.float32], Bank], Scores]) -> float:
    """Return the largest relative error of a score next to float64 over the signatures themselves."""
    exact = ReferenceReduction()(given.x, given.bank).mmd2
    return float(np.abs(reduce(given.x, given.bank).mmd2 / exact - 1).max())


def from_differences(a: Array64, b: Array64) -> Array64:
    """Compute kernel values of (n, d) and (m, d), (n, m), exactly but slowly."""
    return np.exp2([-0.5 * np.einsum("md,md->m", b - row, b - row) for row in a])


def from_products(a: Array64, b: Array64) -> Array64:
    """Compute the same by one matrix product. Exponents are off by 1e-15 of the squared norms."""
    exponents = a @ b.T
    exponents -= np.einsum("nd,nd->n", a, a)[:, None] / 2
    exponents -= np.einsum("md,md->m", b, b)[None] / 2
    np.minimum(exponents, 0.0, out=exponents)
    return np.exp2(exponents, out=exponents)


def expected(given: KernelInput, kernel: Kernel, values: KernelValues = from_differences) -> Expected:
    """Compute in float64 what a kernel should return. values: `from_products` for large inputs."""
    prepared = round_bank(given.bank, kernel)
    limit = LIMITS[kernel.operand]
    with np.errstate(all="ignore"):
        scaled = np.clip((given.x - prepared.centre) * np.float32(prepared.scale), -limit, limit)
    x = widened(rounded(scaled.reshape(-1, given.x.shape[2]), kernel.operand), kernel.operand)
    bank, weights = widened(prepared.operands, kernel.operand), prepared.weights.astype(np.float64)
    both = np.stack([weights, np.abs(weights)], axis=1)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        starts = range(0, len(x), _CHUNK)
        sums = list(pool.map(lambda start: values(x[start : start + _CHUNK], bank) @ both, starts))
    cross, absolute = np.concatenate(sums).T
    shape = given.x.shape[:2]
    within = np.stack([values(image, image).mean(axis=1) for image in x.reshape(given.x.shape)])
    contributions = within - 2 * prepared.unit * cross.reshape(shape) + prepared.self_term
    terms = within + 2 * prepared.unit * absolute.reshape(shape) + abs(prepared.self_term)
    relative = SUMS + (POLYNOMIAL if kernel.operand in ("fp16", "bf16") else 0.0)
    if kernel.version != "plain":
        relative += EXPONENT[kernel.operand] * float(prepared.half_norms.max())
    return Expected(contributions, cross, relative * terms)

"""Prepare a bank and an image so that one GEMM gives a tile of kernel exponents, with bits that depend on both alone.

    -g |x - r|^2 = (2g x, -g |x|^2, -g) . (r, 1, |r|^2),   g = 1 / (2 sigma^2)

Both operands are centred on the bank's mean, which keeps the cancellation small. Exponents in float32 are off by about
eps g |r|^2, so a bank much wider than its bandwidth takes the GEMM in float64, in twice the time. Signed weights
multiply the errors by sum |w|. Where that is large, everything is computed in float64.

Float32 exponents are not clamped at 0. They are near 0 only where g |x|^2 is at most about g |r|^2, and there rounding
lifts one above 0 by no more than it may lower another. Float64 exponents are clamped, because g |r|^2 has no bound
there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank

# Points summed in float32 before float64 takes over. More would break the tolerance rule for float32. A tile is a whole
# number of runs.
RUN = 32
# Largest g |r|^2 whose float32 rounding stays that of a kernel value. A median-distance bandwidth gives about 0.25.
_STEEP = 4.0
# Largest sum |w| for which rounding kernel values to float32 costs hardly more than with equal weights, whose sum is 1.
# An optimally compressed bank has 0.9 to 1.3.
_AMPLIFIED = 1.5
# Largest float64 copy of a bank that is kept, in bytes. Larger ones are made again at every call, tile by tile, so that
# a bank is held at most twice.
LARGEST_COPY = 1 << 26
# Lowest exponent given to exp2, which takes 15 to 60 times as long for results below float32's normal numbers, 2^-126.
_LOWEST = -125.0
# Largest g |x|^2 whose float64 rounding does not disturb the within-image term. Beyond it, the image is centred on its
# own mean for that term.
_FAR = 1e4
# Rows of a bank prepared at a time.
_STRIDE = 128 * RUN

Exp = Callable[..., Any]


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return zeros that begin at a multiple of 64 bytes. At another offset, BLAS may add in another order."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.zeros(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    zeros: NDArray[Any] = buffer[start : start + size].view(dtype).reshape(shape)
    return zeros


class BankOperands:
    """A bank as rows (r, 1, |r|^2), padded with points of weight 0 to whole runs.

    exponent, value: dtypes of the GEMM and of the kernel values.
    weights: (rows,), in the dtype of the kernel values. Times unit, they are the bank's weights.
    clamp: whether exponents must be kept from rising above 0.
    """

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.gamma = 1.0 / (2.0 * bank.sigma * bank.sigma)
        self.centre: NDArray[np.float64] = bank.signatures.mean(axis=0, dtype=np.float64)
        m, d = bank.signatures.shape
        self.rows = -(-m // RUN) * RUN
        largest = 0.0
        for start in range(0, m, _STRIDE):
            largest = max(largest, _norms(bank.signatures[start : start + _STRIDE] - self.centre).max())
        self.radius = math.sqrt(largest)
        amplified = bool(np.abs(bank.weights).sum() > _AMPLIFIED)
        steep = bool(self.gamma * largest > _STEEP)
        self.clamp = steep or amplified
        self.exponent: type[np.floating] = np.float64 if self.clamp else np.float32
        self.value: type[np.floating] = np.float64 if amplified else np.float32
        self.weights = aligned((self.rows,), self.value)
        # In units of the largest weight: equal weights become exactly 1, without a rounding error common to all terms.
        self.unit = float(np.abs(bank.weights).max()) or 1.0
        self.weights[:m] = bank.weights / self.unit
        self._kept: NDArray[Any] | None = None
        if self.exponent is np.float32 or self.rows * (d + 2) * 8 <= LARGEST_COPY:
            kept = aligned((self.rows, d + 2), self.exponent)
            for start in range(0, self.rows, _STRIDE):
                self._fill(kept[start : start + _STRIDE], start)
            self._kept = kept

    def tile(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows start to stop, (stop - start, d + 2). Do not write to them."""
        if self._kept is not None:
            return self._kept[start:stop]
        tile = aligned((stop - start, len(self.centre) + 2), self.exponent)
        self._fill(tile, start)
        return tile

    def _fill(self, tile: NDArray[Any], start: int) -> None:
        centred = self.bank.signatures[start : start + len(tile)] - self.centre
        tile[: len(centred), :-2] = centred
        # Also in the padding, so that an infinite |x|^2 gives 0 there instead of NaN.
        tile[:, -2] = 1.0
        tile[: len(centred), -1] = _norms(centred)


def image_operands(
    x: NDArray[np.floating], bank: BankOperands, out: NDArray[Any], most: int
) -> tuple[NDArray[np.float64], Exp]:
    """Write an image, (N, d), as columns (2g x, -g |x|^2, -g) to out, (d + 2, N).

    Returns two things. The first is the within-image term, 1/N sum_n' k(x[n], x[n']), (N,), computed in float64 with
    about `most` values held at a time. The second is the function that turns results of the GEMM into kernel values:
    exp, or exp2 with its factor in out if that is faster.
    """
    gamma, centred = bank.gamma, x - bank.centre
    norms = _norms(centred)
    columns = _columns(centred, norms, gamma)
    largest = norms.max()
    lowest = -gamma * (math.sqrt(largest) + bank.radius) ** 2 / math.log(2)
    # False if lowest is NaN, too.
    binary = FAST_EXP2 and bank.value is np.float32 and lowest > _LOWEST
    np.multiply(columns, 1 / math.log(2) if binary else 1.0, out=out, casting="same_kind")
    if gamma * largest > _FAR:
        # Where |x|^2 overflows, it alone decides: 2g x . r may be infinite too, and their difference NaN.
        out[:-2, np.isinf(out[-2])] = 0.0
        centred = x - x.mean(axis=0, dtype=np.float64)
        norms = _norms(centred)
        columns = _columns(centred, norms, gamma)
    return _within(np.column_stack([centred, np.ones(len(x)), norms]), columns, most), np.exp2 if binary else np.exp


def _within(rows: NDArray[np.float64], columns: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    n = len(rows)
    total = np.zeros(n)
    step = max(1, most // n)
    for start in range(0, n, step):
        kernel = rows[start : start + step] @ columns
        np.minimum(kernel, 0.0, out=kernel)
        total += np.exp(kernel, out=kernel).sum(axis=0)
    return total / n


def _columns(centred: NDArray[np.float64], norms: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    return np.column_stack([2.0 * gamma * centred, -gamma * norms, np.full(len(norms), -gamma)]).T


def _norms(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = np.einsum("nd,nd->n", centred, centred)
    return norms


def _has_fast_exp2() -> bool:
    # NumPy has Intel's vectorised exp2 only for AVX-512 on Linux. Elsewhere exp2 takes twice as long as exp.
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", ())
    return sys.platform == "linux" and not {"AVX512_SKX", "X86_V4"}.isdisjoint(found)


FAST_EXP2 = _has_fast_exp2()

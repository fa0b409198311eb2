"""The reduction on a CPU: cache-sized tiles shared among threads, and no N x M matrix.

    out[n] = 1/N sum_n' k(x[n], x[n']) - 2 sum_m w[m] k(x[n], r[m]) + C,   k(a, b) = exp(-|a - b|^2 / (2 sigma^2))

A tile of the bank meets all images of a batch while it is in the cache. One GEMM per image gives the exponents, exp
works in place, and a GEMV with the weights sums the kernel values. The bits of an image depend on neither batch nor
threads, for two reasons. Each image has its own GEMM, because BLAS may round a row differently in another shape. Blocks
of tiles are summed separately and then added in order, in float64. operands.py explains how the exponents are formed.
Reference: mdmf_deploy.mmd.reference.ReferenceReduction (float64).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.errors import BankError
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.mmd import Scores, check_shape
from mdmf_deploy.mmd.operands import RUN, BankOperands, Exp, aligned, image_operands
from mdmf_deploy.mmd.reference import gaussian_kernel
from mdmf_deploy.mmd.threads import one_blas_thread, share_out

# Bytes of a tile of exponents. Together with the bank's tile it stays in a second-level cache of 1 MB.
_TILE = 1 << 19
LONGEST_TILE = 64 * RUN
# Blocks of tiles that are summed separately: enough to occupy many threads, few enough to hold their sums.
BLOCKS = 64
# Most rows (signatures) of a batch processed at once.
MAX_ROWS = 1 << 14
# float32 multiplications worth a thread of their own, about half a millisecond.
WORK_PER_THREAD = 1 << 25


class CpuReduction:
    """The reduction in float32 where its errors stay small, else in float64, as the bank requires.

    threads: the most threads that share the work. None for every core this process may use.
    Each bank is prepared once.
    """

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or cores()
        self._operands: BankOperands | None = None

    def __call__(self, signatures: NDArray[np.float32], bank: Bank) -> Scores:
        check_shape(signatures.shape, bank)
        operands = self._operands
        if operands is None or operands.bank is not bank:
            operands = self._operands = BankOperands(bank)
        contributions = np.empty(signatures.shape[:2])
        step = max(1, MAX_ROWS // signatures.shape[1])
        with one_blas_thread():
            for start in range(0, len(signatures), step):
                images = slice(start, start + step)
                self._score(signatures[images], operands, contributions[images])
        return Scores(contributions.mean(axis=1), contributions)

    def _score(self, x: NDArray[np.float32], operands: BankOperands, out: NDArray[np.float64]) -> None:
        """Write the contributions of x, (B, N, d), to out, (B, N)."""
        b, n, d = x.shape
        width = np.dtype(operands.exponent).itemsize
        # The columns of every image begin at a multiple of 64 bytes.
        columns = aligned((b, -(-(d + 2) * n // 16) * 16), operands.exponent)[:, : (d + 2) * n].reshape(b, d + 2, n)
        tile = min(max(_TILE // (n * width * RUN), 1) * RUN, LONGEST_TILE, operands.rows)
        block = -(-operands.rows // (tile * BLOCKS)) * tile
        blocks = -(-operands.rows // block)
        cross = np.zeros((blocks, b, n))
        exps: list[Exp] = [np.exp] * b
        threads = max(1, min(self._threads, b * n * operands.rows * (d + 32) * width // (4 * WORK_PER_THREAD)))
        # With a small bank, threads also share the images.
        group = max(1, b * blocks // (4 * threads))
        groups = -(-b // group)

        def prepare(images: Iterator[int]) -> None:
            with np.errstate(over="ignore", invalid="ignore"):
                for i in images:
                    out[i], exps[i] = image_operands(x[i], operands, columns[i], _TILE // 8)

        def reduce(tasks: Iterator[int]) -> None:
            exponents = aligned((tile, n), operands.exponent)
            values = exponents if operands.value is operands.exponent else aligned((tile, n), operands.value)
            with np.errstate(over="ignore", invalid="ignore"):
                for task in tasks:
                    place, first = task // groups, task % groups * group
                    for start in range(place * block, min((place + 1) * block, operands.rows), tile):
                        stop = min(start + tile, operands.rows)
                        kernel = values[: stop - start]
                        points = operands.tile(start, stop)
                        weights = operands.weights[start:stop].reshape(-1, 1, RUN)
                        for i in range(first, min(first + group, b)):
                            exponent = np.matmul(points, columns[i], out=exponents[: stop - start])
                            if operands.clamp:
                                np.minimum(exponent, 0.0, out=kernel, casting="same_kind")
                            exps[i](kernel, out=kernel)
                            runs = np.matmul(weights, kernel.reshape(-1, RUN, n))
                            cross[place, i] += runs.sum(axis=(0, 1), dtype=np.float64)

        share_out(b, threads, prepare)
        share_out(blocks * groups, threads, reduce)
        out += operands.bank.self_term - 2.0 * operands.unit * cross.sum(axis=0)


def leave_one_out(bank: Bank, at_most: int | None = None) -> NDArray[np.float64]:
    """Score each of the bank's own images against the rest of the bank: real scores that need no other image.

    With S_aa = sum_ij w_i w_j k(r_i, r_j) within image a, S_aR the same against the whole bank, W_a = sum_i w_i and C
    the bank term, the bank without a, its weights scaled back up, has C' = (C - 2 S_aR + S_aa) / (1 - W_a)^2 and cross
    terms B'_i = (B_i - sum_j in a w_j k(r_i, r_j)) / (1 - W_a). So an image costs one pass over the bank instead of a
    new self term.

    Returns (S,) scores, one per source image in the bank's order, or of at_most of them, evenly spaced. They mean
    nothing for a compressed bank, where the points of an image also stand for other images.
    Raises BankError if the bank has only one image.
    """
    present = np.unique(bank.source)
    if len(present) < 2:
        raise BankError("bank: leaving one image out needs at least two; build the bank from more images")
    if at_most is not None and len(present) > at_most:
        present = present[np.linspace(0, len(present) - 1, at_most).round().astype(int)]
    reduction = CpuReduction()
    scores = np.empty(len(present))
    for place, image in enumerate(present):
        own = bank.source == image
        x, weights = bank.signatures[own], bank.weights[own]
        kernel = gaussian_kernel(x, x, bank.sigma)
        within = kernel.mean(axis=1)
        cross = (within + bank.self_term - reduction(x[None], bank).contributions[0]) / 2.0
        rest = 1.0 - weights.sum()
        cross_rest = (cross - kernel @ weights) / rest
        self_rest = (bank.self_term - 2.0 * weights @ cross + weights @ kernel @ weights) / rest**2
        scores[place] = (within - 2.0 * cross_rest).mean() + self_rest
    return scores

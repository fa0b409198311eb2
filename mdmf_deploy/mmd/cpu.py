"""The reduction on a CPU: tiles that stay in the cache, shared out among threads, and no N x M matrix.

    out[n] = 1/N sum_n' k(x[n], x[n']) - 2 sum_m w[m] k(x[n], r[m]) + C,   k(a, b) = exp(-|a - b|^2 / (2 sigma^2))

A tile of the bank meets all images of a batch while it is in the cache: one GEMM an image gives the exponents, exp
works in place, and a GEMV with the weights sums them up.  An image has a GEMM of its own, because BLAS may round a row
otherwise in another place of another shape; and blocks of tiles are summed up apart and then in order, in float64: so
its bits depend on neither batch nor threads.  For how exponents are formed, see operands.py.
Reference: mdmf_deploy.mmd.reference.ReferenceReduction (float64).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.mmd import Scores, check_shapes
from mdmf_deploy.mmd.operands import RUN, Exp, Points, aligned, image_side
from mdmf_deploy.mmd.threads import one_blas_thread, share_out

# Bytes of a tile of exponents: with the bank's tile it stays in a second-level cache of 1 MB.
_TILE = 1 << 19
_LONGEST_TILE = 64 * RUN
# Blocks of tiles that are summed up apart: enough to occupy many threads, few enough to hold.
_BLOCKS = 64
# Most rows (signatures) of a batch taken at once.
_ROWS = 1 << 14
# Multiplications in float32 worth a thread of their own, about half a millisecond.
_SHARE = 1 << 25


class CpuReduction:
    """float32 where its errors stay small, float64 elsewhere, as the bank demands; prepares each bank once.

    threads: at most so many share out the work; None for every core this process may use.
    """

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or cores()
        self._points: Points | None = None

    def __call__(self, signatures: NDArray[np.float32], bank: Bank) -> Scores:
        check_shapes(signatures, bank)
        points = self._points
        if points is None or points.bank is not bank:
            points = self._points = Points(bank)
        contributions = np.empty(signatures.shape[:2])
        step = max(1, _ROWS // signatures.shape[1])
        with one_blas_thread():
            for start in range(0, len(signatures), step):
                images = slice(start, start + step)
                self._score(signatures[images], points, contributions[images])
        return Scores(contributions.mean(axis=1), contributions)

    def _score(self, x: NDArray[np.float32], points: Points, out: NDArray[np.float64]) -> None:
        """x: (B, N, d).  out: (B, N), the contributions, written."""
        b, n, d = x.shape
        width = np.dtype(points.exponent).itemsize
        # Every image's columns begin at a multiple of 64 bytes.
        columns = aligned((b, -(-(d + 2) * n // 16) * 16), points.exponent)[:, : (d + 2) * n].reshape(b, d + 2, n)
        tile = min(max(_TILE // (n * width * RUN), 1) * RUN, _LONGEST_TILE, points.rows)
        block = -(-points.rows // (tile * _BLOCKS)) * tile
        blocks = -(-points.rows // block)
        cross = np.zeros((blocks, b, n))
        exps: list[Exp] = [np.exp] * b
        threads = max(1, min(self._threads, b * n * points.rows * (d + 32) * width // (4 * _SHARE)))
        # A small bank is shared out by images too.
        group = max(1, b * blocks // (4 * threads))
        groups = -(-b // group)

        def prepare(images: Iterator[int]) -> None:
            with np.errstate(over="ignore", invalid="ignore"):
                for i in images:
                    out[i], exps[i] = image_side(x[i], points, columns[i], _TILE // 8)

        def reduce(tasks: Iterator[int]) -> None:
            exponents = aligned((tile, n), points.exponent)
            values = exponents if points.value is points.exponent else aligned((tile, n), points.value)
            with np.errstate(over="ignore", invalid="ignore"):
                for task in tasks:
                    place, first = task // groups, task % groups * group
                    for start in range(place * block, min((place + 1) * block, points.rows), tile):
                        stop = min(start + tile, points.rows)
                        kernel = values[: stop - start]
                        bank = points.tile(start, stop)
                        weights = points.weights[start:stop].reshape(-1, 1, RUN)
                        for i in range(first, min(first + group, b)):
                            exponent = np.matmul(bank, columns[i], out=exponents[: stop - start])
                            if points.clamp:
                                np.minimum(exponent, 0.0, out=kernel, casting="same_kind")
                            exps[i](kernel, out=kernel)
                            runs = np.matmul(weights, kernel.reshape(-1, RUN, n))
                            cross[place, i] += runs.sum(axis=(0, 1), dtype=np.float64)

        share_out(b, threads, prepare)
        share_out(blocks * groups, threads, reduce)
        out += points.bank.self_term - 2.0 * points.unit * cross.sum(axis=0)

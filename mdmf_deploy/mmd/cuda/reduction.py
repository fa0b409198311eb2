"""The reduction on an NVIDIA GPU: signatures from host or GPU memory in, a few bytes per image out.

    out[n] = 1/N sum_n' k(x[n], x[n']) - 2 sum_m w[m] k(x[n], r[m]) + C,   k(a, b) = exp(-|a - b|^2 / (2 sigma^2))

How a signature becomes a score, file by file:

1. Here. `CudaReduction.submit` checks the shape and prepares the bank on first use. It cuts a batch that is too large
   and gives each part to one of two lanes in turn. `Pending.scores` waits for the scores.
2. mmd/cuda/lane.py holds the bank on the GPU (`UploadedBank`). `Lane.start` copies the signatures there and launches
   three kernels, of which the last writes the scores to host memory.
3. mmd/cuda/kernels.py says which kernel a GPU and a bank get, how a bank is prepared for it, and with which grid each
   of the three kernels is launched. mmd/__init__.py holds `Scores` and the check of shapes.
4. hardware/device.py is the GPU as these files see it: memory, copies, modules, launches, events, streams and graphs.
   It also reads arrays that other libraries hold on the GPU. hardware/cuda_core.py is that GPU through cuda-core, and
   hardware/cubin.py compiles and caches the kernels.
5. One file of engines/kernels computes the cross term: 4_wgmma.cu on Hopper (compute capability 9.0), 3_tensor.cu on
   other GPUs, 2_tiled.cu for fp32, and 1_plain.cu for a steep kernel. engines/kernels/around.cuh holds the kernels
   around it: prepare the operands and the within-image term, and the final sums.

No N x M matrix is ever stored. The order of every sum depends only on the bank and the GPU, so an image gets the same
bits in any batch and on every run. Reference: mdmf_deploy.mmd.reference.ReferenceReduction (float64).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.hardware.device import Device, Event, device_view, is_on_device, open_device
from mdmf_deploy.mmd import Scores, check_shape
from mdmf_deploy.mmd.cuda.kernels import Kernel, choose
from mdmf_deploy.mmd.cuda.lane import BatchScores, Lane, UploadedBank

# Two batches at a time: the copies of one run beside the kernels of the other.
_LANES = 2
# Most rows (signatures) in flight per lane. A larger batch is cut.
MAX_ROWS = 1 << 16
# Compute capabilities whose tensor cores do three fp16 products faster than one float32 product: A100, H100, B200 and
# B300. Consumer cards halve the rate of fp16 with float32 sums, so that by their data sheets the two are about equally
# fast, which has not been measured (engines/kernels/README.md). They keep float32.
_FP16X2 = (80, 90, 100, 103)
# Largest mean |r - centre|^2 / (2 sigma^2) for which exponents are computed from products. Beyond it they are computed
# from differences ("plain"), which is slower. A kernel value is off by up to 1e-6 times that mean. In fp32 the errors
# differ in sign; in fp16x2 all values come out too small, because tensor cores truncate. At 128 this moves a score by
# 5e-6 of itself in a hard case (64 points, d = 256, every patch about sigma from a point), and by less with a longer
# bank. fp16 and bf16 have no limit, because their operands round more than that anyway.
_STEEP = {"fp32": 16.0, "fp16x2": 128.0}


class Pending:
    """Scores that a GPU is still computing. Any thread may wait for them, in any order."""

    def __init__(self, batches: Sequence[BatchScores], patches: int) -> None:
        self._batches, self._patches = batches, patches

    def scores(self) -> Scores:
        """Wait for the scores and return them."""
        taken = [batch.take() for batch in self._batches]
        if not taken:
            return Scores(np.zeros(0), np.zeros((0, self._patches)))
        mmd2, contributions = zip(*taken, strict=True)
        return Scores(np.concatenate(mmd2), np.concatenate(contributions))

    @property
    def milliseconds(self) -> float:
        """Time the GPU spent on them, from the first copy to the last. Waits for the scores."""
        self.scores()
        return sum(batch.milliseconds for batch in self._batches)


class CudaReduction:
    """Satisfies the contract of every reduction, on a GPU.

    device: None for the first GPU.
    operand: the type that is multiplied, "fp32", "fp16x2", "fp16" or "bf16". None for fp16x2 on GPUs where it is faster
    than fp32, and fp32 on others.
    version: of the kernels ("plain", "tiled", "tensor", "wgmma"). None for the fastest that is accurate with the bank.
    Raises RuntimeUnavailable without a usable GPU, UsageError for an operand or width that has no kernel, and
    OutOfMemory.
    """

    name = "cuda"

    def __init__(self, device: Device | None = None, *, operand: str | None = None, version: str | None = None) -> None:
        self.device = open_device() if device is None else device
        self.operand = operand or ("fp16x2" if self.device.gpu.sm in _FP16X2 else "fp32")
        self._version = version
        self._lanes = [Lane(self.device) for _ in range(_LANES)]
        self._next = 0
        self._bank: UploadedBank | None = None
        self._lock = threading.Lock()

    def __call__(self, signatures: Any, bank: Bank) -> Scores:
        """Score (B, N, d) signatures: a NumPy array, or one with `__cuda_array_interface__`, which is not copied."""
        return self.submit(signatures, bank).scores()

    def submit(self, signatures: Any, bank: Bank) -> Pending:
        """Start scoring without waiting.

        A NumPy array may be changed as soon as this returns. An array on the GPU may be overwritten by work on its own
        stream (`stream` of its interface), which is made to wait. It must not be changed or freed in any other way
        before the scores are there.
        """
        view = device_view(signatures) if is_on_device(signatures) else None
        shape = signatures.shape if view is None else view.shape
        check_shape(shape, bank)
        images, patches, _ = shape
        with self._lock:
            uploaded = self._prepared(bank)
            step = max(1, MAX_ROWS // patches)
            batches = []
            for start in range(0, images, step):
                count = min(step, images - start)
                lane = self._lanes[self._next]
                self._next = (self._next + 1) % _LANES
                batch = signatures[start : start + count] if view is None else view.images(start, count)
                batches.append(lane.start(batch, uploaded))
        return Pending(batches, patches)

    def mark(self, stream: int) -> Event:
        """Record a new event on another library's stream (a cudaStream_t) and return it."""
        event = self.device.event()
        event.record(self.device.stream(stream))
        return event

    def prepare(self, bank: Bank) -> None:
        """Upload a bank ahead of its first image. Raises the same errors as the first call with it."""
        with self._lock:
            self._prepared(bank)

    def close(self) -> None:
        """Wait for running work and free all GPU memory. The next call allocates it again."""
        with self._lock:
            self._clear()

    def _prepared(self, bank: Bank) -> UploadedBank:
        if self._bank is None or self._bank.bank is not bank:
            kernel = self._kernel(bank)
            self._clear()
            self._bank = UploadedBank(self.device, bank, kernel)
        return self._bank

    def _kernel(self, bank: Bank) -> Kernel:
        sm, width = self.device.gpu.sm, bank.signatures.shape[1]
        if self._version is None and _steepness(bank) > _STEEP.get(self.operand, math.inf):
            return choose(sm, width, "fp32", "plain")
        return choose(sm, width, self.operand, self._version)

    def _clear(self) -> None:
        for lane in self._lanes:
            lane.clear()
        if self._bank is not None:
            self._bank.free()
        self._bank = None


def _steepness(bank: Bank) -> float:
    """Return the mean |r - centre|^2 / (2 sigma^2) of the bank's points, weighted by |w|."""
    centre = bank.signatures.mean(axis=0, dtype=np.float64)
    weights = np.abs(bank.weights)
    squared = 0.0
    for start in range(0, len(weights), MAX_ROWS):
        centred = bank.signatures[start : start + MAX_ROWS] - centre
        squared += float(weights[start : start + MAX_ROWS] @ np.einsum("md,md->m", centred, centred))
    return squared / (float(weights.sum()) or 1.0) / (2.0 * bank.sigma**2)

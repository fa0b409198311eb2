"""The reduction on an NVIDIA GPU: signatures from either memory in, a few bytes an image out.

    out[n] = 1/N sum_n' k(x[n], x[n']) - 2 sum_m w[m] k(x[n], r[m]) + C,   k(a, b) = exp(-|a - b|^2 / (2 sigma^2))

The kernels (engines/kernels) hold no N x M matrix, and sum in an order that depends on the bank and the GPU alone: so
an image's bits depend neither on its batch nor on how often it is run.  A bank is prepared and uploaded once.
Reference: mdmf_deploy.mmd.reference.ReferenceReduction (float64).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.hardware.device import Device, Event, open_device
from mdmf_deploy.hardware.memory import device_view, is_on_device
from mdmf_deploy.mmd import Scores, check_shape
from mdmf_deploy.mmd.cuda.kernels import Kernel, choose
from mdmf_deploy.mmd.cuda.lane import Lane, Part, PointsOnDevice

# Two batches at a time: one's copies run while the other's kernels do.
_LANES = 2
# Most rows (signatures) of a batch taken at once.
_ROWS = 1 << 16
# Compute capabilities whose tensor cores make three tf32 products in less time than a float32 one: A100, H100, B200,
# B300.  Other cards' tf32 runs at float32's rate (engines/kernels/README.md).
_TF32 = (80, 90, 100, 103)
# Largest mean |r - centre|^2 / (2 sigma^2) up to which exponents come from products: they are off by about 3e-8 of it.
# Beyond it they come from differences ("plain"), which is slower.  fp16 and bf16 round more than that anyway.
_STEEP = {"fp32": 16.0, "tf32": 128.0}


class Pending:
    """Scores that a GPU is working on.  Any thread may wait for them, in any order."""

    def __init__(self, parts: Sequence[Part], patches: int) -> None:
        self._parts, self._patches = parts, patches

    def scores(self) -> Scores:
        """Wait until they are there."""
        taken = [part.take() for part in self._parts]
        if not taken:
            return Scores(np.zeros(0), np.zeros((0, self._patches)))
        mmd2, contributions = zip(*taken, strict=True)
        return Scores(np.concatenate(mmd2), np.concatenate(contributions))

    @property
    def milliseconds(self) -> float:
        """What the GPU spent on them, from the first copy to the last; waits for them."""
        self.scores()
        return sum(part.milliseconds for part in self._parts)


class CudaReduction:
    """Held to the same contract as every reduction.  operand: what the products are made of.

    device: None for the first GPU.  operand: "fp32", "tf32", "fp16" or "bf16"; None for tf32 where that takes less time
    than fp32, else fp32.  version: of the kernels ("plain", "tiled", "tensor"); None for the fastest that is accurate
    with this bank.
    Raises RuntimeUnavailable without a usable GPU, UsageError for an operand or a width that no kernel is made for, and
    OutOfMemory.
    """

    name = "cuda"

    def __init__(self, device: Device | None = None, *, operand: str | None = None, version: str | None = None) -> None:
        self._device = open_device() if device is None else device
        self._operand = operand or ("tf32" if self._device.gpu.sm in _TF32 else "fp32")
        self._version = version
        self._lanes = [Lane(self._device) for _ in range(_LANES)]
        self._next = 0
        self._points: PointsOnDevice | None = None
        self._lock = threading.Lock()

    def __call__(self, signatures: Any, bank: Bank) -> Scores:
        """signatures: (B, N, d), of NumPy, or of whatever has a `__cuda_array_interface__`, which is not copied."""
        return self.submit(signatures, bank).scores()

    def submit(self, signatures: Any, bank: Bank) -> Pending:
        """As a call, but without waiting.

        A NumPy array may be changed as soon as this returns.  An array on the GPU may be changed by work on its own
        stream (`stream` of its interface), which is made to wait; it must not be freed otherwise before its scores are
        there.
        """
        view = device_view(signatures) if is_on_device(signatures) else None
        shape = signatures.shape if view is None else view.shape
        check_shape(shape, bank)
        images, patches, _ = shape
        with self._lock:
            points = self._prepared(bank)
            step = max(1, _ROWS // patches)
            parts = []
            for start in range(0, images, step):
                count = min(step, images - start)
                lane = self._lanes[self._next]
                self._next = (self._next + 1) % _LANES
                batch = signatures[start : start + count] if view is None else view.images(start, count)
                parts.append(lane.start(batch, points))
        return Pending(parts, patches)

    def mark(self, stream: int) -> Event:
        """A new event, recorded on another library's stream (cudaStream_t)."""
        event = self._device.event()
        event.record(self._device.stream(stream))
        return event

    def prepare(self, bank: Bank) -> None:
        """Upload a bank before its first image comes.  Raises as the first call with it would."""
        with self._lock:
            self._prepared(bank)

    def close(self) -> None:
        """Free all memory on the GPU, once what runs has run; the next call takes it anew."""
        with self._lock:
            self._clear()

    def _prepared(self, bank: Bank) -> PointsOnDevice:
        if self._points is None or self._points.bank is not bank:
            kernel = self._kernel(bank)
            self._clear()
            self._points = PointsOnDevice(self._device, bank, kernel)
        return self._points

    def _kernel(self, bank: Bank) -> Kernel:
        sm, width = self._device.gpu.sm, bank.signatures.shape[1]
        if self._version is None and _steepness(bank) > _STEEP.get(self._operand, math.inf):
            return choose(sm, width, "fp32", "plain")
        return choose(sm, width, self._operand, self._version)

    def _clear(self) -> None:
        for lane in self._lanes:
            lane.clear()
        if self._points is not None:
            self._points.free()
        self._points = None


def _steepness(bank: Bank) -> float:
    """Mean |r - centre|^2 / (2 sigma^2), points weighted by |w|."""
    centre = bank.signatures.mean(axis=0, dtype=np.float64)
    weights = np.abs(bank.weights)
    squared = 0.0
    for start in range(0, len(weights), _ROWS):
        centred = bank.signatures[start : start + _ROWS] - centre
        squared += float(weights[start : start + _ROWS] @ np.einsum("md,md->m", centred, centred))
    return squared / (float(weights.sum()) or 1.0) / (2.0 * bank.sigma**2)

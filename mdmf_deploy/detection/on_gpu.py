"""An engine and the reduction on one GPU: crops in, scores out, and the signatures never leave it.

The engine's work, the reduction's and the copy of the scores follow each other in the order of the GPU's streams; no
thread waits between them, so the next batch is copied in and started while this one is still in work.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.detection.prepare import Scored
from mdmf_deploy.hardware.memory import device_view
from mdmf_deploy.mmd.cuda.reduction import CudaReduction, Pending
from mdmf_deploy.runtime import GpuEngine


class Batch:
    """What a GPU is working on, or has finished; any thread may ask for any image."""

    def __init__(self, pending: Pending, images: int, ms_engine: Callable[[], float]) -> None:
        self._pending, self._images, self._ms_engine = pending, images, ms_engine

    def image(self, place: int) -> Scored:
        """Waits for the batch."""
        scores = self._pending.scores()
        ms_mmd = self._pending.milliseconds / self._images
        ms_engine = self._ms_engine() / self._images
        return Scored(float(scores.mmd2[place]), scores.contributions[place].tolist(), ms_engine, ms_mmd)


class Fused:
    """One batch after the other, from one thread; each is scored against the same bank."""

    def __init__(self, engine: GpuEngine, reduction: CudaReduction, bank: Bank) -> None:
        self._engine, self._reduction, self._bank = engine, reduction, bank
        self._stream: int | None = None

    def __call__(self, images: NDArray[np.float32]) -> Batch:
        """(B, 3, crop, crop), B >= 1.  Raises what the engine does, and OutOfMemory."""
        start = time.perf_counter()
        begun = None if self._stream is None else self._reduction.mark(self._stream)
        signatures = self._engine.on_device(images)
        self._stream = device_view(signatures).stream
        if self._stream is None:
            elapsed = 1e3 * (time.perf_counter() - start)
            pending = self._reduction.submit(signatures, self._bank)
            # The next call may overwrite them whenever it likes.
            pending.scores()
            return Batch(pending, len(images), lambda: elapsed)
        ended = self._reduction.mark(self._stream)
        pending = self._reduction.submit(signatures, self._bank)
        if begun is None:
            # Before the first batch nobody knew the stream.
            ended.synchronize()
            elapsed = 1e3 * (time.perf_counter() - start)
            return Batch(pending, len(images), lambda: elapsed)
        # Both are reached when the scores are there.
        return Batch(pending, len(images), lambda: ended.since(begun))

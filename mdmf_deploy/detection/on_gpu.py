"""An engine and the reduction on one GPU: crops in, scores out. The signatures never leave the GPU.

The engine, the reduction and the copy of the scores are queued on the GPU's streams, one after the other. No thread
waits between them, so the next batch is copied in and started while this one is still being computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.detection.feed import ImageScore
from mdmf_deploy.hardware.device import device_view
from mdmf_deploy.mmd.cuda.reduction import CudaReduction, Pending
from mdmf_deploy.runtime import GpuEngine


class PendingBatch:
    """A batch that the GPU is computing or has finished. Any thread may ask for the score of any image."""

    def __init__(self, pending: Pending, images: int, ms_engine: Callable[[], float]) -> None:
        self._pending, self._images, self._ms_engine = pending, images, ms_engine

    def score(self, place: int) -> ImageScore:
        """Wait for the batch and return the score of the image at this place in it."""
        scores = self._pending.scores()
        ms_mmd = self._pending.milliseconds / self._images
        ms_engine = self._ms_engine() / self._images
        return ImageScore(float(scores.mmd2[place]), scores.contributions[place].tolist(), ms_engine, ms_mmd)


class Fused:
    """Run batches one after the other, called from one thread, and score each against the same bank."""

    def __init__(self, engine: GpuEngine, reduction: CudaReduction, bank: Bank) -> None:
        self._engine, self._reduction, self._bank = engine, reduction, bank
        self._stream: int | None = None

    def __call__(self, images: NDArray[np.float32]) -> PendingBatch:
        """Queue a batch, (B, 3, crop, crop) with B >= 1. Raises OutOfMemory and the engine's own errors."""
        start = time.perf_counter()
        begun = None if self._stream is None else self._reduction.mark(self._stream)
        signatures = self._engine.on_device(images)
        self._stream = device_view(signatures).stream
        if self._stream is None:
            elapsed = 1e3 * (time.perf_counter() - start)
            pending = self._reduction.submit(signatures, self._bank)
            # Without a stream, the engine's next call may overwrite the signatures at any time.
            pending.scores()
            return PendingBatch(pending, len(images), lambda: elapsed)
        ended = self._reduction.mark(self._stream)
        pending = self._reduction.submit(signatures, self._bank)
        if begun is None:
            # The stream was unknown before the first batch, so no event marks its beginning.
            ended.synchronize()
            elapsed = 1e3 * (time.perf_counter() - start)
            return PendingBatch(pending, len(images), lambda: elapsed)
        # Both events have passed once the scores are there.
        return PendingBatch(pending, len(images), lambda: ended.since(begun))

"""An engine and the reduction on one GPU: crops in, scores out. The signatures never leave the GPU.

The engine, the reduction and the copy of the scores are queued on the GPU's streams, one after the other. No thread
waits between them, so the next batch is copied in and started while this one is still being computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.detection.feed import ImageScore
from mdmf_deploy.hardware.device import device_view
from mdmf_deploy.mmd import Scores
from mdmf_deploy.mmd.cuda.reduction import CudaReduction, Pending
from mdmf_deploy.runtime import GpuEngine


class PendingPart(NamedTuple):
    """The crops of one call of the engine.  ms_engine: waits for the milliseconds that the engine took."""

    pending: Pending
    ms_engine: Callable[[], float]


class PendingBatch:
    """A batch that the GPU is computing or has finished. Any thread may ask for the score of any image.

    crops: how many crops each image has. They lie in the parts one after the other.
    """

    def __init__(self, parts: Sequence[PendingPart], crops: Sequence[int]) -> None:
        self._parts, self._crops = parts, crops

    def score(self, place: int) -> ImageScore:
        """Wait for the batch and return the score of the image at this place in it."""
        scores = [part.pending.scores() for part in self._parts]
        joined = Scores(
            np.concatenate([one.mmd2 for one in scores]), np.concatenate([one.contributions for one in scores])
        )
        score, contributions = joined.of_images(self._crops)[place]
        images = len(self._crops)
        ms_mmd = sum(part.pending.milliseconds for part in self._parts) / images
        ms_engine = sum(part.ms_engine() for part in self._parts) / images
        return ImageScore(score, contributions.ravel().tolist(), ms_engine, ms_mmd)


class Fused:
    """Run batches one after the other, called from one thread, and score each against the same bank."""

    def __init__(self, engine: GpuEngine, reduction: CudaReduction, bank: Bank) -> None:
        self._engine, self._reduction, self._bank = engine, reduction, bank
        self._stream: int | None = None

    def __call__(self, parts: Iterable[NDArray[np.float32]], crops: Sequence[int]) -> PendingBatch:
        """Queue the crops of at least one image, in parts of (n, 3, crop, crop) for one call of the engine each.

        crops: how many crops each image has, at least 1. They lie in the parts one after the other.
        Raises OutOfMemory and the engine's own errors.
        """
        return PendingBatch([self._queue(part) for part in parts], crops)

    def _queue(self, crops: NDArray[np.float32]) -> PendingPart:
        start = time.perf_counter()
        begun = None if self._stream is None else self._reduction.mark(self._stream)
        signatures = self._engine.on_device(crops)
        self._stream = device_view(signatures).stream
        if self._stream is None:
            elapsed = 1e3 * (time.perf_counter() - start)
            pending = self._reduction.submit(signatures, self._bank)
            # Without a stream, the engine's next call may overwrite the signatures at any time.
            pending.scores()
            return PendingPart(pending, lambda: elapsed)
        ended = self._reduction.mark(self._stream)
        pending = self._reduction.submit(signatures, self._bank)
        if begun is None:
            # The stream was unknown before the first batch, so no event marks its beginning.
            ended.synchronize()
            elapsed = 1e3 * (time.perf_counter() - start)
            return PendingPart(pending, lambda: elapsed)
        # Both events have passed once the scores are there.
        return PendingPart(pending, lambda: ended.since(begun))

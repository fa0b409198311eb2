"""Batches for engines on a GPU: split and padded on the way in, an array on the GPU on the way out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.runtime.building.profiles import BatchRange

_LOG = logging.getLogger(__name__)


class BatchSlice(NamedTuple):
    """images[start:stop], to be run as a batch of `rows`. Rows past the slice are padding."""

    start: int
    stop: int
    rows: int


class BatchSplitter:
    """Splits and pads images into batches that an engine takes.

    If signatures do not depend on the batch, a batch has as many images as there are, up to the profile's max.
    Otherwise each batch has the profile's opt, so that a row depends on its image alone.

    fixed: whether every batch has the profile's opt from the start.
    """

    def __init__(self, batch: BatchRange, runtime: str, *, fixed: bool = False) -> None:
        self._batch, self._runtime, self._fixed = batch, runtime, fixed
        self._reported = False

    def split(self, count: int) -> Iterator[BatchSlice]:
        """Yield the slices of `count` images, in order. Log the first batch that is split."""
        most = self._batch.opt if self._fixed else self._batch.max
        if count > most and not self._reported:
            self._reported = True
            _LOG.info(
                "%s: batches of %d images are run %d at a time, as many as its engine takes; the profile throughput "
                "takes more, as --runtime %s:throughput",
                self._runtime,
                count,
                most,
                self._runtime,
            )
        for start in range(0, count, most):
            stop = min(start + most, count)
            yield BatchSlice(start, stop, most if self._fixed else max(stop - start, self._batch.min))

    def rows(self, count: int) -> int:
        """Return how many rows the results of `count` images take, padding of the last slice included."""
        *whole, last = self.split(count)
        return sum(part.rows for part in whole) + last.rows

    def adapt(self, extract: Callable[[NDArray[np.float32]], NDArray[np.float32]], image: tuple[int, ...]) -> None:
        """Find out whether signatures depend on the batch, bit by bit, with random images of this shape (3, S, S)."""
        batch = self._batch
        images = np.random.default_rng(0).standard_normal((batch.max, *image)).astype(np.float32)
        whole = extract(images)
        sizes = {batch.min, min(batch.min + 1, batch.max), (batch.min + batch.opt) // 2, batch.opt} - {batch.max}
        self._fixed = any(not np.array_equal(extract(images[:size]), whole[:size]) for size in sorted(sizes))


class DeviceArray(NamedTuple):
    """An array on the GPU, C-contiguous float32, valid until the engine's next call.

    stream: the cudaStream_t whose work makes it, or None if it is finished.
    owner: an object that keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    stream: int | None
    owner: object

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "typestr": "<f4",
            "shape": self.shape,
            "data": (self.pointer, False),
            "strides": None,
            "stream": self.stream,
        }

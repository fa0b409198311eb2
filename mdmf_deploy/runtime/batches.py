"""Batches for engines that take so many images and no more, and whose arithmetic may depend on how many they get."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.runtime.building.profiles import Batch


class Part(NamedTuple):
    """images[start:stop], to be run as `rows` of them, the last of which may be of no meaning."""

    start: int
    stop: int
    rows: int


class Sizes:
    """How batches are split and padded.

    An engine whose signatures are the same in every batch gets as many images as come, up to the profile's largest.
    One whose signatures are not gets the profile's opt every time: then a row depends on its image alone.
    """

    def __init__(self, batch: Batch, runtime: str) -> None:
        self._batch, self._runtime = batch, runtime
        self._fixed = self._told = False

    def parts(self, count: int) -> Iterator[Part]:
        """So many images, in order.  Says once on stderr that a batch has to be split."""
        most = self._batch.opt if self._fixed else self._batch.max
        if count > most and not self._told:
            self._told = True
            print(
                f"mdmf: {self._runtime}: batches of {count} images are run {most} at a time, as many as its engine "
                "takes; `mdmf build --profile` makes one for more",
                file=sys.stderr,
            )
        for start in range(0, count, most):
            stop = min(start + most, count)
            yield Part(start, stop, most if self._fixed else max(stop - start, self._batch.min))

    def rows(self, count: int) -> int:
        """Rows that the results of so many images take, padding included."""
        *whole, last = self.parts(count)
        return sum(part.rows for part in whole) + last.rows

    def settle(self, extract: Callable[[NDArray[np.float32]], NDArray[np.float32]], shape: tuple[int, ...]) -> None:
        """Find out whether signatures depend on the batch, bit by bit, on random images of this shape (3, S, S)."""
        batch = self._batch
        images = np.random.default_rng(0).standard_normal((batch.max, *shape)).astype(np.float32)
        whole = extract(images)
        sizes = {batch.min, min(batch.min + 1, batch.max), (batch.min + batch.opt) // 2, batch.opt} - {batch.max}
        self._fixed = any(not np.array_equal(extract(images[:size]), whole[:size]) for size in sorted(sizes))


class OnDevice(NamedTuple):
    """An array on the GPU, C-contiguous float32, valid until the engine's next call.

    stream: cudaStream_t on which it is made, None if it is made.  owner: kept while the array is.
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

"""Times on a GPU: events around the work, the second-level cache emptied before it, medians of many rounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mdmf_deploy.hardware.device import Device, Stream

# Larger than the second-level cache of any card so far. Copying it also takes longer than Python takes to launch the
# timed work, so that the work only waits for the GPU.
_FLUSH = 512 << 20
WARMUP, ROUNDS = 3, 20


class Clock:
    """Time work on a stream of this device, or on another library's stream by its handle."""

    def __init__(self, device: Device, flush: int = _FLUSH) -> None:
        self._device = device
        self._flush = [device.allocate(flush, "free some of the GPU's memory") for _ in range(2)]

    def seconds(
        self, work: Callable[[Stream], object], stream: Stream, rounds: int = ROUNDS, repeats: int = 1
    ) -> float:
        """Return the median time of one call. The first rounds, which compile and allocate, are not counted.

        repeats: calls in a row that make up one time. From the second on, the cache holds what the call before it used.
        """
        times = []
        for n in range(-WARMUP, rounds):
            self._device.copy(*self._flush, self._flush[0].nbytes, stream)
            begun, ended = self._device.event(), self._device.event()
            begun.record(stream)
            for _ in range(repeats):
                work(stream)
            ended.record(stream)
            ended.synchronize()
            if n >= 0:
                times.append(1e-3 * ended.since(begun) / repeats)
        return float(np.median(times))

    def own_seconds(self, work: Callable[[], float], stream: Stream, rounds: int = ROUNDS) -> float:
        """Return the median, in seconds, of the milliseconds that the work returns after waiting for the stream."""
        times = []
        for n in range(-WARMUP, rounds):
            self._device.copy(*self._flush, self._flush[0].nbytes, stream)
            milliseconds = work()
            if n >= 0:
                times.append(1e-3 * milliseconds)
        return float(np.median(times))

    def close(self) -> None:
        for memory in self._flush:
            memory.free()

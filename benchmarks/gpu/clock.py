"""Times on a GPU: events around the work, its second-level cache emptied before, medians of many rounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mdmf_deploy.hardware.device import Device, Stream

# Larger than the second-level cache of any card so far; and copying it takes longer than Python takes to launch what is
# timed, which so waits for nothing but the GPU.
_FLUSH = 512 << 20
WARMUP, ROUNDS = 3, 20


class Clock:
    """Times what is given to a stream of this device, or to another library's stream by its handle."""

    def __init__(self, device: Device, flush: int = _FLUSH) -> None:
        self._device = device
        self._flush = [device.allocate(flush, "free some of the GPU's memory") for _ in range(2)]

    def seconds(self, work: Callable[[Stream], object], stream: Stream, rounds: int = ROUNDS) -> float:
        """Median; the first rounds, which compile and allocate, are not counted."""
        times = []
        for n in range(-WARMUP, rounds):
            self._device.copy(*self._flush, self._flush[0].nbytes, stream)
            begun, ended = self._device.event(), self._device.event()
            begun.record(stream)
            work(stream)
            ended.record(stream)
            ended.synchronize()
            if n >= 0:
                times.append(1e-3 * ended.since(begun))
        return float(np.median(times))

    def own_seconds(self, work: Callable[[], float], stream: Stream, rounds: int = ROUNDS) -> float:
        """Median, in seconds, of what the work says of itself in milliseconds; it is to wait for the stream."""
        times = []
        for n in range(-WARMUP, rounds):
            self._device.copy(*self._flush, self._flush[0].nbytes, stream)
            told = work()
            if n >= 0:
                times.append(1e-3 * told)
        return float(np.median(times))

    def close(self) -> None:
        for memory in self._flush:
            memory.free()

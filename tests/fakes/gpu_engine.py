"""An engine that leaves its signatures on a pretended GPU (host_device.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.hardware.device import host_view
from mdmf_deploy.runtime import open_engine

PATCHES, WIDTH = 49, 64


class GpuEngine:
    """Signatures of the starter by ONNX Runtime, on a stream of the pretended GPU, always in the same memory.

    names_stream: whether it reports its stream. If not, it waits for the work before it returns.
    on_host: how often it was called for signatures on the host.
    spoil: a place in the batch and the value that one number of its signatures gets.
    """

    def __init__(self, bundle: Bundle, device: Any, names_stream: bool = True) -> None:
        self._inner = open_engine("onnxruntime", bundle)
        self.name, self.precision = self._inner.name, self._inner.precision
        self._device, self.stream, self._names_stream = device, device.stream(), names_stream
        self._out = device.allocate(4 * 8 * PATCHES * WIDTH, "-")
        self.on_host = 0
        self.closed = False
        self.spoil: tuple[int, float] | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.on_host += 1
        return self._inner(images)

    def on_device(self, images: np.ndarray) -> object:
        given, shape = images.copy(), (len(images), PATCHES, WIDTH)

        def run() -> None:
            signatures = self._inner(given)
            if self.spoil is not None and len(signatures) > self.spoil[0]:
                signatures[self.spoil[0], 3, 7] = self.spoil[1]
            host_view(self._out.pointer, signatures.nbytes)[:] = signatures.reshape(-1).view(np.uint8)

        self.stream.give(run)
        if not self._names_stream:
            self.stream.synchronize()
        stream = self.stream.handle if self._names_stream else None
        interface = {
            "shape": shape,
            "typestr": "<f4",
            "data": (self._out.pointer, False),
            "version": 3,
            "stream": stream,
        }
        return SimpleNamespace(__cuda_array_interface__=interface)

    def close(self) -> None:
        self.closed = True
        self._inner.close()

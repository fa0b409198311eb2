"""Engines that go wrong, and one that counts how many of its kind are open."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.runtime.ort import OrtEngine


class NanEngine:
    """An engine whose signatures (B, 4, 8) are all NaN."""

    name = "onnxruntime"
    precision = "fp32"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.full((len(images), 4, 8), np.nan, np.float32)

    def close(self) -> None:
        pass


class CountedEngine:
    """ONNX Runtime's engine, listed in `open` until it is closed."""

    name = "onnxruntime"
    precision = "fp32"
    open: ClassVar[list[str]] = []

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._engine = OrtEngine(bundle, threads)
        self.open.append(self.name)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._engine(images)

    def close(self) -> None:
        self.open.remove(self.name)
        self._engine.close()


class BrokenEngine(CountedEngine):
    """An engine that opens, and raises when it runs."""

    name = "broken"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        raise RuntimeError("Exception from src/core.cpp:97:\nno memory")


class ClosedEngine:
    """An engine that does not even open."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        raise RuntimeUnavailable("runtime 'closed': no such device")


class TwinEngine(CountedEngine):
    """ONNX Runtime's engine under another name."""

    name = "twin"


class DriftingEngine(CountedEngine):
    """An engine whose signatures are all off by one."""

    name = "drifting"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return super().__call__(images) + 1.0


class ForbiddenEngine:
    """An engine that must not be opened."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        raise AssertionError("opened")

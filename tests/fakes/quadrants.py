"""An engine that needs no model: the means of a crop's quarters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

CROP, PATCHES = 16, 4


class Quadrants:
    """An engine whose signatures are the means of a crop's quarters. It records the sizes of its batches."""

    name = "onnxruntime"
    precision = "fp32"

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.batches: list[int] = []
        self._before = before

    def __call__(self, tensor: np.ndarray) -> np.ndarray:
        self._before()
        self.batches.append(len(tensor))
        half = CROP // 2
        quarters = tensor.reshape(len(tensor), 3, 2, half, 2, half).mean(axis=(3, 5))
        return quarters.reshape(len(tensor), 3, PATCHES).transpose(0, 2, 1).copy()

    def close(self) -> None:
        pass

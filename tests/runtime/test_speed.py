from __future__ import annotations

import numpy as np
import pytest

from mdmf_deploy.runtime import speed as pace


class Slow:
    """An engine whose clock goes on by `seconds` a call."""

    name, precision = "slow", "fp32"

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds, self.shapes = clock, seconds, set()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.clock[0] += self.seconds * (1 if self.shapes else 100)  # the first call compiles
        self.shapes.add(images.shape)
        return images

    def close(self) -> None:
        pass


def test_rates_are_images_over_the_best_call_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])
    engines = [Slow(clock, 0.25), Slow(clock, 2.0)]
    assert pace.images_per_second(engines, 56) == [32.0, 4.0]
    assert [engine.shapes for engine in engines] == [{(8, 3, 56, 56)}] * 2

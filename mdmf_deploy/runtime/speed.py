"""How many images a second engines sign on this machine, measured by turns so that a busy moment hits all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from mdmf_deploy.runtime import Engine

BATCH = 8
_ROUNDS = 3
_TURN = 0.3


def images_per_second(engines: Sequence[Engine], crop: int) -> list[float]:
    """Each engine's best rate over three turns, at batches of 8, decoding and scoring left out.

    crop: the side of the square images, in pixels.  About 2 s an engine; of slow ones, four batches each.
    """
    images = np.random.default_rng(0).standard_normal((BATCH, 3, crop, crop)).astype(np.float32)
    best = [0.0] * len(engines)
    for engine in engines:
        engine(images)  # what is compiled or allocated on first use
    for _ in range(_ROUNDS):
        for place, engine in enumerate(engines):
            end = time.perf_counter() + _TURN
            while True:
                start = time.perf_counter()
                engine(images)
                now = time.perf_counter()
                best[place] = max(best[place], BATCH / (now - start))
                if now >= end:
                    break
    return best

"""When requests come to the server scenario."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def poisson(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Moments of a Poisson process, (n,), rising from 0, in seconds: `rate` a second, about `seconds` long.

    n = ceil(rate * seconds) is fixed, so that a rate that holds and one that does not are judged on as many requests.
    """
    count = max(1, math.ceil(rate * seconds))
    return np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, count))

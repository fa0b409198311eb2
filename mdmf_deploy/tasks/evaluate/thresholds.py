"""The best threshold, found on other images than those it judges.

The threshold with the highest accuracy on the test images themselves is a figure that no user will reach. So the images
are divided into two halves by their hashes, and each half is judged at the best threshold of the other one. Or a second
data set gives one threshold for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def best_threshold(pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float | None:
    """Return the threshold with the highest balanced accuracy, averaged over generators. None if a class is empty.

    pairs: for each generator, the scores of the real images that it is compared with, (n,), and of its own, (m,).
    A score above the threshold counts as generated. Of equally good thresholds, the highest is taken. It lies half-way
    between two scores, or above all of them.
    """
    pairs = [(real, generated) for real, generated in pairs if len(real) and len(generated)]
    if not pairs:
        return None
    scores = np.concatenate([scores for pair in pairs for scores in pair])
    gains = np.concatenate(
        [np.repeat([-1 / len(real), 1 / len(generated)], [len(real), len(generated)]) for real, generated in pairs]
    )
    order = np.argsort(-scores, kind="stable")
    scores, gains = scores[order], np.cumsum(gains[order])
    # A threshold cannot part equal scores.
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    best = int(np.argmax(np.round(gains[ends], 12)))
    if gains[ends[best]] <= 0:
        return math.nextafter(float(scores[0]), math.inf)
    above = float(scores[ends[best]])
    below = float(scores[ends[best] + 1]) if ends[best] + 1 < len(scores) else above - 1.0
    return max((above + below) / 2, below) if (above + below) / 2 < above else below


def half_of(sha256: str) -> int:
    """Return 0 or 1, the half that an image with this SHA-256 (hex) belongs to.

    The last digit decides. The recipes' split uses the first ones, so the two do not depend on each other.
    """
    return int(sha256[-1], 16) % 2

"""Which real images each generator is compared with, and their figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.evaluate.datasets import KnownImage
from mdmf_deploy.tasks.evaluate.metrics import Draws, Estimate, Sample, draws, wilson
from mdmf_deploy.tasks.evaluate.thresholds import best_threshold, half_of


class Judged(NamedTuple):
    """An image and its row."""

    image: KnownImage
    row: Row


class Comparison:
    """The scored images of a data set, and which real images each generator is compared with.

    real: once each.  generated: by generator.
    thresholds: those that judge the images of either half for best_acc, or () if a half lacks a class.
    Raises UsageError unless there are images of both classes.
    """

    def __init__(self, scored: Sequence[Judged], threshold: float | None, resamples: int) -> None:
        self._reals = [pair for pair in scored if pair.image.generator is None]
        self.real = list({pair.image.sha256 or pair.row.uri: pair for pair in reversed(self._reals)}.values())[::-1]
        self.generated: dict[str, list[Judged]] = {}
        for pair in scored:
            if pair.image.generator is not None:
                self.generated.setdefault(pair.image.generator, []).append(pair)
        if not self.real or not self.generated:
            missing = "generated" if self.real else "real"
            raise UsageError(f"no {missing} image is left to judge; give more, or another --part")
        self._resamples = resamples
        found = [self.best(partial(_in_half, 1 - half)) if threshold is None else threshold for half in (0, 1)]
        self.thresholds = tuple(one for one in found if one is not None) if None not in found else ()

    def real_of(self, generator: str) -> list[Judged]:
        """Return the real images that a generator is compared with, as datasets.py describes."""
        beside = [pair for pair in self._reals if pair.image.compared_with == generator]
        shared = [pair for pair in self._reals if pair.image.compared_with is None]
        return beside or shared or self.real

    def best(self, chosen: Callable[[Judged], bool]) -> float | None:
        """Return the best threshold of the chosen images, or None if they lack a class."""
        return best_threshold(
            [
                (_scores(filter(chosen, self.real_of(name))), _scores(filter(chosen, own)))
                for name, own in self.generated.items()
            ]
        )

    def draws(self, name: str, real: list[Judged], generated: list[Judged]) -> Draws:
        """Return the figures of one comparison with their bootstrap. Flags count if both classes have them."""
        of_real, of_generated = self.sample(real), self.sample(generated, name)
        return draws(of_real, of_generated, self._resamples)

    def sample(self, pairs: list[Judged], stream: str | None = None) -> Sample:
        """Return images as a sample.  stream: a generator's name. Real images are known by what they lie beside."""
        name = str(pairs[0].image.compared_with) if stream is None else stream
        flagged = np.array([pair.row.verdict == "generated" for pair in pairs]) if decided(pairs) else None
        above = None
        if self.thresholds:
            above = np.array([(pair.row.score or 0.0) > self.thresholds[_half(pair)] for pair in pairs])
        return Sample(_scores(pairs), flagged, above, name)


def fpr_of(real: Sequence[Judged]) -> Estimate | None:
    """Return the share of real images with the verdict "generated", or None if there are none, or no verdicts."""
    if not real or not decided(real):
        return None
    return wilson(sum(pair.row.verdict == "generated" for pair in real), len(real))


def decided(pairs: Iterable[Judged]) -> bool:
    """Return whether any of these images could have been called generated. If none could, a rate of 0 says nothing."""
    return any(
        pair.row.verdict != "uncalibrated" and pair.row.reason != "no_calibration_for_this_size" for pair in pairs
    )


def uncertain(pairs: Sequence[Judged]) -> int | None:
    """Return how many images have the verdict "uncertain", or None if there are no verdicts."""
    if not decided(pairs):
        return None
    return sum(pair.row.verdict == "uncertain" for pair in pairs)


def _half(pair: Judged) -> int:
    return half_of(pair.image.sha256 or "0")


def _in_half(half: int, pair: Judged) -> bool:
    return _half(pair) == half


def _scores(pairs: Iterable[Judged]) -> NDArray[np.float64]:
    return np.array([pair.row.score for pair in pairs], dtype=np.float64)

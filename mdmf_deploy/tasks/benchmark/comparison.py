"""Configurations compared with the first one: how much faster they are, and how far their verdicts drift.

A speed without the drift says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import BankError, UsageError
from mdmf_deploy.tasks.benchmark.results import Drift, Ratio, Result
from mdmf_deploy.tasks.benchmark.statistics import paired_ratio
from mdmf_deploy.tasks.benchmark.subjects import Subject
from mdmf_deploy.tasks.verify import Scale, rank_correlation, scale_in


def ratios(figure: str, results: Sequence[Result], rates: Sequence[Sequence[float]]) -> list[Ratio]:
    """Return how many times as fast as the first result each other one is.

    rates: the rates of every round, for each result, or nothing if the figure was not measured.
    """
    return [
        Ratio(
            configuration=result.configuration.name,
            against=results[0].configuration.name,
            figure=figure,
            times=paired_ratio(own, rates[0]),
            rounds=len(own),
        )
        for result, own in list(zip(results, rates, strict=False))[1:]
    ]


def measure_drift(subjects: Sequence[Subject], paths: Sequence[Path]) -> list[Drift | None]:
    """Return each subject's drift against the first, which has None itself."""
    first, *others = subjects
    if not others:
        return [None]
    rows, scale = first.detector.detect(paths), _scale(first)
    drifts: list[Drift | None] = [None]
    for other in others:
        # A bundle lowered from the first one is judged by the first one's threshold. Other bundles have their own.
        theirs = scale if other.about.bundle == first.about.bundle else _scale(other)
        drifts.append(drift(rows, other.detector.detect(paths), scale, theirs))
    return drifts


def drift(before: Sequence[Row], after: Sequence[Row], scale: Scale | None, theirs: Scale | None) -> Drift:
    """Compare two configurations' rows of the same images.

    scale, theirs: spread and threshold of real scores, for `before` and `after`. Verdicts are compared if both are
        known.
    Raises UsageError if no image has a score in both.
    """
    pairs = [
        (one.score, other.score)
        for one, other in zip(before, after, strict=True)
        if one.score is not None and other.score is not None
    ]
    if not pairs:
        raise UsageError("drift: no image got a score from both configurations; run `mdmf detect` to see why")
    a, b = np.array(pairs, np.float64).T
    unit = float(np.std(a)) if scale is None else scale.spread
    flipped = None
    if scale is not None and theirs is not None:
        flipped = int(np.count_nonzero((a > scale.threshold) != (b > theirs.threshold)))
    lost = len(before) - len(pairs)
    notes = [f"{lost} images without a score left out"] if lost else []
    if scale is None:
        notes.append("no real scores are known, so the spread is that of these images, and verdicts are not compared")
    return Drift(
        images=len(pairs),
        # A spread of zero (copies of one image) leaves no unit to measure in.
        score_change=float(np.abs(b - a).max()) / max(unit, 1e-12),
        rank_correlation=rank_correlation(a, b),
        flipped=flipped,
        spread=unit,
        note="; ".join(notes),
    )


def _scale(subject: Subject) -> Scale | None:
    try:
        return scale_in(subject.bundle)
    except BankError:
        return None

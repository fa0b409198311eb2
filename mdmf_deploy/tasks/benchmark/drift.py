"""What a configuration's rows say beside the first one's, on the same images: a speed without this says little."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import BankError, UsageError
from mdmf_deploy.tasks.benchmark.results import Drift
from mdmf_deploy.tasks.benchmark.subjects import Subject
from mdmf_deploy.tasks.verify import Scale, rank_correlation, scale_in

Scores = NDArray[np.float64]


def measure(subjects: Sequence[Subject], paths: Sequence[Path]) -> list[Drift | None]:
    """One for each subject, None for the first, which the others are held against."""
    first, *others = subjects
    if not others:
        return [None]
    rows, scale = first.detector.detect(paths), _scale(first)
    drifts: list[Drift | None] = [None]
    for other in others:
        # Of one bundle and what was lowered from it the first's threshold decides; other bundles have their own.
        theirs = scale if other.about.bundle == first.about.bundle else _scale(other)
        drifts.append(compare(rows, other.detector.detect(paths), scale, theirs))
    return drifts


def compare(before: Sequence[Row], after: Sequence[Row], scale: Scale | None, theirs: Scale | None) -> Drift:
    """Rows of the same images.  scale, theirs: of real scores, for either; without both no verdict can be compared.

    Raises UsageError if there is no image that both could score.
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
        notes.append("no real scores to take a spread from: it is that of these images; no verdicts")
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

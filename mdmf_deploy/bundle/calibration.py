"""A calibration: scores of held-out real images, and the verdicts they allow (calibration.json)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec

from mdmf_deploy.bundle import conformal
from mdmf_deploy.errors import CalibrationError


class Judgement(NamedTuple):
    """What a calibration says about one score; p_value and threshold as in mdmf_deploy.detection.rows.Row."""

    p_value: float | None
    threshold: float | None
    verdict: Verdict


class Pair(msgspec.Struct, frozen=True, order=True):
    """A runtime and the precision of the graph it runs, on which thresholds hold."""

    runtime: str
    precision: str


class Threshold(msgspec.Struct, frozen=True):
    """score: p <= fpr iff an image's score is above it; null means infinity, too few images for this rate."""

    fpr: float
    score: float | None


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Scores of n >= 1 real images that are not in the bank; checked at birth.

    bundle_id: what they were scored with.  measured_on: the runtime that did it.
    scores: (n,) ascending.  image_sha256: (n,) of the same images, in the same order.
    thresholds: the first one decides; others are for reading.
    review: p-values above the first rate and up to this one are "uncertain".
    holds_for: pairs that verification covered at the time; mdmf_deploy.bundle.bundle.Bundle.calibration
        puts those in their place that it covers now.
    carried: the images were scored with another bank, from which MMD differs by at most this much; `scores` are upper
        bounds of what they would score now, so p-values are at least as large as after calibrating anew.
    """

    bundle_id: str
    measured_on: Pair
    scores: tuple[float, ...]
    image_sha256: tuple[str, ...]
    thresholds: tuple[Threshold, ...]
    review: float
    holds_for: tuple[Pair, ...]
    carried: float = 0.0

    def __post_init__(self) -> None:
        if not self.scores or len(self.scores) != len(self.image_sha256):
            raise ValueError(f"{len(self.scores)} scores of {len(self.image_sha256)} images; expected as many, >= 1")
        if not all(map(math.isfinite, self.scores)) or any(a > b for a, b in pairwise(self.scores)):
            raise ValueError("scores must be finite and ascending")
        if not self.thresholds or not all(0.0 < entry.fpr < 1.0 for entry in self.thresholds):
            raise ValueError("expected at least one threshold, at false positive rates between 0 and 1")
        if not self.thresholds[0].fpr <= self.review < 1.0:
            raise ValueError(f"review rate {self.review} must be at least {self.thresholds[0].fpr} and below 1")
        if not (math.isfinite(self.carried) and self.carried >= 0.0):
            raise ValueError(f"carried {self.carried} must be finite and at least 0")
        for entry in self.thresholds:
            if entry.score != conformal.threshold(self.scores, entry.fpr):
                raise ValueError(f"the threshold at {entry.fpr} is not that of the scores")

    @classmethod
    def from_scores(
        cls,
        scores: dict[str, float],
        fprs: Sequence[float],
        review: float,
        *,
        bundle_id: str,
        measured_on: Pair,
        holds_for: Sequence[Pair],
    ) -> Calibration:
        """scores: SHA-256 of an image -> its score.  fprs: the first one decides.

        Raises CalibrationError if there is no score, or a rate is not in (0, 1).
        """
        ordered = sorted((float(score), sha256) for sha256, score in scores.items())
        ascending = tuple(score for score, _ in ordered)
        if any(not 0.0 < fpr < 1.0 for fpr in fprs):
            raise CalibrationError(f"false positive rates {', '.join(map(str, fprs))}: each must be between 0 and 1")
        try:
            return cls(
                bundle_id=bundle_id,
                measured_on=measured_on,
                scores=ascending,
                image_sha256=tuple(sha256 for _, sha256 in ordered),
                thresholds=tuple(Threshold(fpr, conformal.threshold(ascending, fpr)) for fpr in fprs),
                review=review,
                holds_for=tuple(sorted(holds_for)),
            )
        except ValueError as error:
            raise CalibrationError(f"calibration: {error}") from error

    @property
    def fpr(self) -> float:
        """The rate that decides."""
        return self.thresholds[0].fpr

    def judge(self, score: float, runtime: str, precision: str) -> Judgement:
        """The verdict on one score; "uncalibrated" on a pair this does not hold for.

        "generated" iff p <= fpr, which is iff score > threshold; "uncertain" iff fpr < p <= review; else "real".
        Raises CalibrationError if the score is not finite.
        """
        if not math.isfinite(score):
            raise CalibrationError(f"score {score} is not finite; run `mdmf verify` on this runtime")
        if Pair(runtime, precision) not in self.holds_for:
            return Judgement(None, None, "uncalibrated")
        p = conformal.p_value(score, self.scores)
        verdict: Verdict = "generated" if p <= self.fpr else "uncertain" if p <= self.review else "real"
        return Judgement(p, self.thresholds[0].score, verdict)

    def to_bytes(self) -> bytes:
        """calibration.json; every float reads back as it was."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "calibration.json") -> Calibration:
        """Read what to_bytes wrote.  Raises CalibrationError naming the file if it is not such a calibration."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CalibrationError(f"{name} is not a calibration ({error}); run `mdmf calibrate`") from error


Verdict = Literal["real", "generated", "uncertain", "uncalibrated", "error"]

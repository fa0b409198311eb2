"""Conformal p-values from the scores of held-out real images, and the verdicts they allow (calibration.json).

With k = how many of the n calibration scores are >= s, p(s) = (k + 1) / (n + 1). If the next real image is exchangeable
with those n, P(p <= a) <= a for every a, whatever the distribution (Vovk, Gammerman, Shafer 2005, section 2.2).
A tie with a calibration score makes p larger, which keeps the inequality.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec

from mdmf_deploy.errors import CalibrationError

Verdict = Literal["real", "generated", "uncertain", "uncalibrated", "error"]


class Judgement(NamedTuple):
    """A calibration's verdict on one score. The fields are those of mdmf_deploy.detection.rows.Row."""

    p_value: float | None
    threshold: float | None
    verdict: Verdict


class Pair(msgspec.Struct, frozen=True, order=True):
    """A runtime and the precision of the graph it runs. Thresholds hold for such pairs."""

    runtime: str
    precision: str


class Threshold(msgspec.Struct, frozen=True):
    """score: p <= fpr iff an image's score is above it. None means infinity: too few images for this rate."""

    fpr: float
    score: float | None


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Scores of n >= 1 real images that are not in the bank. Checks itself at birth.

    bundle_id: the bundle that scored them.
    measured_on: the runtime that scored them.
    scores: (n,) ascending.
    image_sha256: (n,) of the same images, in the same order.
    thresholds: the first one decides. The others are for the reader.
    review: p-values above the first rate and up to this one are "uncertain".
    holds_for: the pairs that verification covered when this was written. Bundle.calibration replaces them by the pairs
        that it covers now.
    carried: a bound on the change of MMD if the images were scored with another bank, else 0. `scores` are then upper
        bounds of the scores with this bank, so p-values are at least as large as after calibrating again.
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
            if entry.score != threshold(self.scores, entry.fpr):
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
        """Make a calibration.  scores: SHA-256 of an image -> its score.  fprs: the first one decides.

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
                thresholds=tuple(Threshold(fpr, threshold(ascending, fpr)) for fpr in fprs),
                review=review,
                holds_for=tuple(sorted(holds_for)),
            )
        except ValueError as error:
            raise CalibrationError(f"calibration: {error}") from error

    @property
    def fpr(self) -> float:
        """The false positive rate that decides."""
        return self.thresholds[0].fpr

    def judge(self, score: float, runtime: str, precision: str) -> Judgement:
        """Return the verdict on one score, or "uncalibrated" for a pair this calibration does not hold for.

        "generated" iff p <= fpr, which is iff score > threshold. "uncertain" iff fpr < p <= review. Else "real".
        Raises CalibrationError if the score is not finite.
        """
        if not math.isfinite(score):
            raise CalibrationError(f"score {score} is not finite; run `mdmf verify` on this runtime")
        if Pair(runtime, precision) not in self.holds_for:
            return Judgement(None, None, "uncalibrated")
        p = p_value(score, self.scores)
        verdict: Verdict = "generated" if p <= self.fpr else "uncertain" if p <= self.review else "real"
        return Judgement(p, self.thresholds[0].score, verdict)

    def to_bytes(self) -> bytes:
        """Return calibration.json. Every float reads back to the last bit."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "calibration.json") -> Calibration:
        """Read the bytes of to_bytes. Raises CalibrationError naming the file if they are not a calibration."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CalibrationError(f"{name} is not a calibration ({error}); run `mdmf calibrate`") from error


def p_value(score: float, scores: Sequence[float]) -> float:
    """Return (k + 1) / (n + 1), where k of the n `scores` (ascending) are >= score."""
    n = len(scores)
    return (n - bisect_left(scores, score) + 1) / (n + 1)


def alarms(n: int, fpr: float) -> int:
    """Return the largest integer l with l / (n + 1) <= fpr, for fpr in (0, 1).

    A p-value is at most fpr iff k < l, so with l = 0 none can be. The comparison uses the floats that p_value returns,
    and both agree to the last bit.
    """
    rank = math.floor(fpr * (n + 1))
    while rank / (n + 1) > fpr:
        rank -= 1
    while (rank + 1) / (n + 1) <= fpr:
        rank += 1
    return rank


def threshold(scores: Sequence[float], fpr: float) -> float | None:
    """Return the t for which score > t iff p_value(score) <= fpr, or None (plus infinity) if n is too small for fpr.

    scores: ascending.  t is the l-th largest of them, where l = alarms(n, fpr).
    """
    rank = alarms(len(scores), fpr)
    return scores[-rank] if rank else None


def images_needed(fpr: float) -> int:
    """Return the smallest n at which a p-value can reach fpr: 1 / (n + 1) <= fpr."""
    n = max(math.ceil(1 / fpr) - 2, 0)
    while 1 / (n + 1) > fpr:
        n += 1
    return n


def fpr_interval(n: int, fpr: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval that holds the threshold's false positive rate with this confidence, over the draw of images.

    For continuous scores the rate follows Beta(l, n + 1 - l), where l = alarms(n, fpr), with mean l / (n + 1)
    (Vovk 2012, "Conditional validity of inductive conformal predictors", proposition 2a; Angelopoulos and Bates 2021,
    section 3.2). Ties only lower it. The ends are that law's central quantiles, or (0, 0) if l = 0.
    """
    rank = alarms(n, fpr)
    if rank == 0:
        return 0.0, 0.0
    tail = (1.0 - confidence) / 2.0
    return beta_quantile(tail, rank, n + 1 - rank), beta_quantile(1.0 - tail, rank, n + 1 - rank)


def beta_quantile(probability: float, a: int, b: int) -> float:
    """Return the quantile of Beta(a, b), for whole a, b >= 1, by bisection on an exact identity:

    P(Beta(a, b) <= x) = P(Binomial(a + b - 1, x) >= a).
    """
    n = a + b - 1
    upper = a > n // 2  # Sum the tail with fewer terms.
    counts = range(a, n + 1) if upper else range(a)
    log_choose = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in counts]

    def cdf(x: float) -> float:
        log_x, log_rest = math.log(x), math.log1p(-x)
        tail = math.fsum(
            math.exp(choose + i * log_x + (n - i) * log_rest) for choose, i in zip(log_choose, counts, strict=True)
        )
        return tail if upper else 1.0 - tail

    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2.0
        if middle in (low, high) or high - low < 1e-14:
            return middle
        if cdf(middle) < probability:
            low = middle
        else:
            high = middle

"""Groups of calibration scores, of photographs of one range of sizes or of videos, and the verdicts they allow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from mdmf_deploy.bundle.conformal import alarms, images_needed, p_value, threshold
from mdmf_deploy.bundle.documents import ImageHash, Name, Rate
from mdmf_deploy.errors import CalibrationError

Verdict = Literal["real", "generated", "uncertain", "uncalibrated", "error"]
Reason = Literal[
    "featureless",
    "no_calibration_for_this_size",
    "borderline",
    "unstable",
    "expected_by_chance",
    "not_verified",
    "no_thresholds",
    "other_crops",
    "no_video_thresholds",
    "other_frames",
    "one_frame",
]

LEAST_EVIDENCE = 0.25
"""The least share of patches with texture on which a verdict may rest. This figure is ours."""

SIZE_BOUNDS = (0.5, 2.0, 8.0)
"""The default upper bounds of size groups in megapixels. One more group holds all larger images."""


# A squared MMD is 0 to 4, and rounding takes less than a hundredth from it. A compression that changes MMD by up to e
# raises calibration scores to at most (2 + e)^2.
LEAST_SCORE, MOST_MMD = -0.01, 2.0
MOST_CARRIED = 98.0
CalibrationScore = Annotated[float, Meta(ge=LEAST_SCORE, le=(MOST_MMD + MOST_CARRIED) ** 2)]
Carried = Annotated[float, Meta(ge=0.0, le=MOST_CARRIED)]
_Megapixels = Annotated[float, Meta(ge=0.0, le=1e12)]

NEAR = 4
"""A real image is near the threshold if its p-value is at most this many times the false positive rate."""

VIDEOS = "videos"
"""The size group of every video."""


class Judgement(NamedTuple):
    """A calibration's verdict on one image. The fields are those of mdmf_deploy.detection.rows.Row."""

    p_value: float | None
    threshold: float | None
    verdict: Verdict
    reason: Reason | None = None
    size_group: str | None = None


class Pair(msgspec.Struct, frozen=True, order=True):
    """A runtime and the precision of the graph it runs. Thresholds hold for such pairs."""

    runtime: Name
    precision: Name


class Threshold(msgspec.Struct, frozen=True):
    """score: p <= fpr iff an image's score is above it. None means infinity: too few images for this rate."""

    fpr: Rate
    score: CalibrationScore | None


class Scored(NamedTuple):
    """A real image that may calibrate.

    sha256: of its bytes.
    pixels: width x height of the whole image.
    evidence: the share of its patches with texture, at least LEAST_EVIDENCE.
    """

    sha256: str
    score: float
    pixels: int
    evidence: float


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The scores of n >= 0 real images of one range of sizes.

    above, up_to: megapixels, width x height of the whole image. Its images have more than `above`, and at most `up_to`
        or, if that is None, any number.
    scores: (n,) ascending.
    image_sha256: (n,) of the same images, in the same order.
    thresholds: the first one decides. The others are for the reader.
    """

    above: _Megapixels
    up_to: _Megapixels | None
    scores: tuple[CalibrationScore, ...]
    image_sha256: tuple[ImageHash, ...]
    thresholds: tuple[Threshold, ...]

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.image_sha256):
            raise ValueError(f"{self.name}: {len(self.scores)} scores of {len(self.image_sha256)} images")
        if not all(map(math.isfinite, self.scores)) or any(a > b for a, b in pairwise(self.scores)):
            raise ValueError(f"{self.name}: scores must be finite and ascending")
        for entry in self.thresholds:
            if not 0.0 < entry.fpr < 1.0 or entry.score != threshold(self.scores, entry.fpr):
                raise ValueError(f"{self.name}: the threshold at {entry.fpr} is not that of the scores")

    @classmethod
    def of(
        cls, scored: Iterable[tuple[float, str]], fprs: Sequence[float], above: float = 0.0, up_to: float | None = None
    ) -> Group:
        """Make the group of sizes above `above` and up to `up_to` megapixels.  scored: (score, SHA-256) of each image.

        Raises ValueError unless scores are finite.
        """
        ordered = sorted(scored)
        scores = tuple(score for score, _ in ordered)
        return cls(
            above=above,
            up_to=up_to,
            scores=scores,
            image_sha256=tuple(sha256 for _, sha256 in ordered),
            thresholds=tuple(Threshold(fpr, threshold(scores, fpr)) for fpr in fprs),
        )

    @property
    def name(self) -> str:
        """The group as rows and tables show it, such as "0.5 to 2 MP"."""
        if self.up_to is None:
            return f"above {self.above:g} MP" if self.above else "all sizes"
        return f"{self.above:g} to {self.up_to:g} MP" if self.above else f"up to {self.up_to:g} MP"

    @property
    def decides(self) -> float | None:
        """The threshold that decides. None means that the group has too few images, so it gives no verdict."""
        return self.thresholds[0].score

    @property
    def near(self) -> tuple[float, float] | None:
        """The lowest and the highest score near the deciding threshold. None if there is no threshold.

        The lowest is the calibration score at NEAR times the deciding rate. The highest lies as far above the threshold
        as the lowest lies below it. P-values cannot tell where to end above it: the highest scores share the smallest.
        """
        if self.decides is None:
            return None
        n = len(self.scores)
        lowest = self.scores[-min(n, alarms(n, min(1.0, NEAR * self.thresholds[0].fpr)))]
        return lowest, 2.0 * self.decides - lowest


class VideoGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The scores of real videos, n >= 1, whatever their size. It stands beside the photographs' groups.

    frames: how many frames of a video are scored. The thresholds hold for no other number.
    measured_on: the runtime that scored them.
    scores, video_sha256, thresholds: as those of Group.
    least_evidence, review, carried: as those of Calibration.
    """

    frames: Annotated[int, Meta(ge=1, le=1000)]
    measured_on: Pair
    scores: tuple[CalibrationScore, ...]
    video_sha256: tuple[ImageHash, ...]
    thresholds: tuple[Threshold, ...]
    least_evidence: float
    review: float
    carried: Carried = 0.0

    def __post_init__(self) -> None:
        if self.frames < 1 or not self.scores or not self.thresholds:
            raise ValueError("videos: expected at least one frame, one score and one threshold")
        check_rule(self.thresholds[0].fpr, self.review, self.least_evidence, self.carried)
        _ = self.group

    @classmethod
    def of(
        cls, videos: Sequence[Scored], frames: int, fprs: Sequence[float], review: float, measured_on: Pair
    ) -> VideoGroup:
        """Make the group of these videos, at least one.  frames: of each.  fprs: the first one decides.

        Raises CalibrationError if a rate is not in (0, 1), or the review rate does not fit.
        """
        check_rates(fprs)
        group = Group.of([(float(video.score), video.sha256) for video in videos], fprs)
        try:
            return cls(
                frames=frames,
                measured_on=measured_on,
                scores=group.scores,
                video_sha256=group.image_sha256,
                thresholds=group.thresholds,
                least_evidence=max(LEAST_EVIDENCE, min(video.evidence for video in videos)),
                review=review,
            )
        except ValueError as error:
            raise CalibrationError(f"calibration: {error}") from error

    @property
    def group(self) -> Group:
        """The same scores and thresholds as a group of all sizes."""
        return Group(
            above=0.0, up_to=None, scores=self.scores, image_sha256=self.video_sha256, thresholds=self.thresholds
        )

    @property
    def shortage(self) -> str | None:
        """A clause that says how many videos are needed, if there are too few for the deciding rate. Else None."""
        fpr = self.thresholds[0].fpr
        if self.thresholds[0].score is not None:
            return None
        return f"{len(self.scores)} calibration videos are too few for a false positive rate of {fpr:g}: it needs " + (
            f"{images_needed(fpr)}"
        )


def judged(score: float, evidence: float, group: Group, name: str, least_evidence: float, review: float) -> Judgement:
    """Return the verdict by one group, as Calibration.judge describes.  name: the group as the row gives it."""
    if not evidence >= least_evidence:
        return Judgement(None, None, "uncertain", "featureless", name)
    p = p_value(score, group.scores) if group.scores else None
    if p is None or group.decides is None:
        return Judgement(p, None, "uncertain", "no_calibration_for_this_size", name)
    fpr = group.thresholds[0].fpr
    if fpr < p <= review:
        return Judgement(p, group.decides, "uncertain", "borderline", name)
    return Judgement(p, group.decides, "generated" if p <= fpr else "real", None, name)


def check_rates(fprs: Sequence[float]) -> None:
    """Raise CalibrationError unless every false positive rate is in (0, 1)."""
    if any(not 0.0 < fpr < 1.0 for fpr in fprs):
        raise CalibrationError(f"false positive rates {', '.join(map(str, fprs))}: each must be between 0 and 1")


def check_rule(fpr: float, review: float, least_evidence: float, carried: float) -> None:
    """Raise ValueError unless the values of a calibration fit one another."""
    if not fpr <= review < 1.0:
        raise ValueError(f"review rate {review} must be at least {fpr} and below 1")
    if not LEAST_EVIDENCE <= least_evidence <= 1.0:
        raise ValueError(f"least_evidence {least_evidence} must be {LEAST_EVIDENCE} to 1")
    if not (math.isfinite(carried) and carried >= 0.0):
        raise ValueError(f"carried {carried} must be finite and at least 0")

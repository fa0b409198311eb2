"""Scores of held-out real images by size, and the verdicts they allow (calibration.json).

Scores of a small picture and of a 12-megapixel photograph at its native scale are not exchangeable, so each group of
sizes has scores and thresholds of its own ("Mondrian" conformal prediction; Vovk, Gammerman, Shafer 2005, section 4.5).
Its p-values are valid within the group, and so over all images, on average over draws of the calibration images
(mdmf_deploy.bundle.conformal says what holds for a single draw).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from mdmf_deploy.bundle.conformal import images_needed
from mdmf_deploy.bundle.documents import MOST_JSON, PSEUDONYM, ImageHash, Sha256, read_json
from mdmf_deploy.bundle.groups import (
    LEAST_EVIDENCE,
    MOST_MMD,
    SIZE_BOUNDS,
    VIDEOS,
    CalibrationScore,
    Carried,
    Group,
    Judgement,
    Pair,
    Reason,
    Scored,
    Threshold,
    Verdict,
    VideoGroup,
    check_rates,
    check_rule,
    judged,
)
from mdmf_deploy.bundle.manifest import SCHEMA_VERSION, VIDEO_SCHEMA
from mdmf_deploy.errors import CalibrationError

__all__ = [
    "LEAST_EVIDENCE",
    "SIZE_BOUNDS",
    "VIDEOS",
    "Calibration",
    "Group",
    "Judgement",
    "Pair",
    "Reason",
    "Scored",
    "Threshold",
    "Verdict",
    "VideoGroup",
]


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Scores of real images or videos that are not in the bank, at least one. Checks itself at birth.

    bundle_id: the bundle that scored them.
    measured_on: the runtime that scored them.
    groups: by size, ascending. The last one has no upper bound. All have thresholds at the same rates.
    least_evidence: an image with a smaller share of patches with texture is "uncertain". It is the least share of any
        calibration image, and at least LEAST_EVIDENCE. Of images like the calibration's n, at most one in n + 1 falls
        below the least share on average.
    review: p-values above the first rate and up to this one are "uncertain".
    holds_for: the pairs that verification covered when this was written. Bundle.calibration replaces them by the pairs
        that it covers now.
    carried: a bound on the change of MMD if the images were scored with another bank, else 0. `scores` are then upper
        bounds of the scores with this bank, so p-values are at least as large as after calibrating again.
    videos: real videos, apart from the images. All other fields but bundle_id and holds_for are the images'.
    """

    bundle_id: Sha256
    measured_on: Pair
    groups: tuple[Group, ...]
    least_evidence: float
    review: float
    holds_for: tuple[Pair, ...]
    carried: Carried = 0.0
    videos: VideoGroup | None = None

    def __post_init__(self) -> None:
        if self.videos is None and not any(group.scores for group in self.groups):
            raise ValueError("it has no score; expected at least one")
        ends = [0.0, *(math.inf if group.up_to is None else group.up_to for group in self.groups)]
        if [group.above for group in self.groups] != ends[:-1] or ends[-1] != math.inf or not _ascend(ends):
            raise ValueError("size groups must follow one another from 0 to any number of megapixels")
        if not self.fprs or any(tuple(entry.fpr for entry in g.thresholds) != self.fprs for g in self.groups):
            raise ValueError("expected at least one threshold, and the same false positive rates in all groups")
        check_rule(self.fpr, self.review, self.least_evidence, self.carried)

    @classmethod
    def from_images(
        cls,
        images: Iterable[Scored],
        fprs: Sequence[float],
        review: float,
        *,
        bundle_id: str,
        measured_on: Pair,
        holds_for: Sequence[Pair],
        bounds: Sequence[float] = SIZE_BOUNDS,
        videos: VideoGroup | None = None,
    ) -> Calibration:
        """Make a calibration.  fprs: the first one decides.  bounds: upper bounds of the size groups but the last.

        Raises CalibrationError if there is neither an image nor a video, a rate is not in (0, 1), or bounds are not
        ascending.
        """
        check_rates(fprs)
        images = list(images)
        edges = [0.0, *bounds, math.inf]
        if not _ascend(edges):
            raise CalibrationError(
                f"size bounds {', '.join(map(str, bounds))}: expected finite megapixels above 0, ascending"
            )
        try:
            return cls(
                bundle_id=bundle_id,
                measured_on=measured_on,
                groups=tuple(
                    Group.of(
                        [(float(i.score), i.sha256) for i in images if above < i.pixels / 1e6 <= up_to],
                        fprs,
                        above,
                        None if up_to == math.inf else up_to,
                    )
                    for above, up_to in pairwise(edges)
                ),
                least_evidence=max([LEAST_EVIDENCE, min((image.evidence for image in images), default=0.0)]),
                review=review,
                holds_for=tuple(sorted(holds_for)),
                videos=videos,
            )
        except ValueError as error:
            raise CalibrationError(f"calibration: {error}") from error

    @property
    def fprs(self) -> tuple[float, ...]:
        """The false positive rates of the thresholds. The first one decides."""
        return tuple(entry.fpr for entry in self.groups[0].thresholds)

    @property
    def fpr(self) -> float:
        """The false positive rate that decides."""
        return self.fprs[0]

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores of all groups, ascending."""
        return tuple(sorted(score for group in self.groups for score in group.scores))

    @property
    def undecided(self) -> tuple[str, ...]:
        """The names of the groups with too few images for the deciding rate. Their images are always "uncertain"."""
        return tuple(group.name for group in self.groups if group.decides is None)

    @property
    def shortage(self) -> str | None:
        """A clause that says how many images are needed, if no group has enough for the deciding rate. Else None."""
        if len(self.undecided) < len(self.groups):
            return None
        needed = f"each size needs {images_needed(self.fpr)}"
        if len(self.groups) > 1:
            fullest = max(self.groups, key=lambda group: len(group.scores))
            needed += f", and the fullest group ({fullest.name}) has {len(fullest.scores)}"
        return f"{len(self.scores)} calibration images are too few for a false positive rate of {self.fpr:g}: {needed}"

    @property
    def image_sha256(self) -> frozenset[str]:
        """The hashes of all images."""
        return frozenset(sha256 for group in self.groups for sha256 in group.image_sha256)

    @property
    def anonymous(self) -> bool:
        """Whether nobody can tell by a photograph's hash that it, or another one, is in this calibration."""
        videos = () if self.videos is None else self.videos.video_sha256
        return any(sha256.startswith(PSEUDONYM) for sha256 in (*self.image_sha256, *videos))

    def group(self, pixels: int) -> Group:
        """Return the group of an image of so many pixels."""
        return next(group for group in self.groups if group.up_to is None or pixels / 1e6 <= group.up_to)

    def judge(self, score: float, evidence: float, pixels: int, runtime: str, precision: str) -> Judgement:
        """Return the verdict on one image, with the reason if it is neither "real" nor "generated".

        evidence, pixels: as in Scored.
        "uncalibrated" for a pair that this calibration does not hold for. Otherwise "uncertain" if the image has too
        little evidence, whatever its score, or if its group has too few images for the deciding rate. Otherwise
        "generated" iff p <= fpr, which is iff score > threshold. "uncertain" iff fpr < p <= review. Else "real".
        Raises CalibrationError if the score is not finite.
        """
        if not math.isfinite(score):
            raise CalibrationError(f"score {score} is not finite; run `mdmf verify` on this runtime")
        if Pair(runtime, precision) not in self.holds_for:
            return Judgement(None, None, "uncalibrated", "not_verified")
        if not any(group.scores for group in self.groups):
            return Judgement(None, None, "uncalibrated", "no_thresholds")
        group = self.group(pixels)
        return judged(score, evidence, group, group.name, self.least_evidence, self.review)

    def judge_video(self, score: float, evidence: float, frames: int, runtime: str, precision: str) -> Judgement:
        """Return the verdict on one video, as `judge` does for an image. Photographs say nothing about it.

        frames: how many were scored. "uncalibrated" without calibration videos, or if they had another number.
        Raises CalibrationError if the score is not finite.
        """
        if not math.isfinite(score):
            raise CalibrationError(f"score {score} is not finite; run `mdmf verify` on this runtime")
        if Pair(runtime, precision) not in self.holds_for:
            return Judgement(None, None, "uncalibrated", "not_verified")
        videos = self.videos
        if videos is None:
            return Judgement(None, None, "uncalibrated", "no_video_thresholds")
        if frames != videos.frames:
            return Judgement(None, None, "uncalibrated", "other_frames")
        return judged(score, evidence, videos.group, VIDEOS, videos.least_evidence, videos.review)

    @property
    def schema(self) -> int:
        """The schema of a bundle with this calibration."""
        return SCHEMA_VERSION if self.videos is None else VIDEO_SCHEMA

    def to_bytes(self) -> bytes:
        """Return calibration.json. Every float reads back to the last bit.

        Raises CalibrationError if it is longer than what `from_bytes` reads.
        """
        data = msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"
        if len(data) > MOST_JSON:
            raise CalibrationError(
                f"calibration: {len(self.image_sha256)} images take {len(data)} bytes, of {MOST_JSON}; give fewer"
            )
        return data

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "calibration.json", schema: int = SCHEMA_VERSION) -> Calibration:
        """Read the bytes of to_bytes, or a file of schema 1, whose scores become one group for all sizes.

        Raises CalibrationError naming the file if they are not a calibration, or hold a score that no image can have.
        """
        try:
            read = read_json(data, _Schema1).upgraded() if schema == 1 else read_json(data, cls)
            read._check_scores()
            return read
        except ValueError as error:
            raise CalibrationError(f"{name} is not a calibration ({error}); run `mdmf calibrate`") from error

    def _check_scores(self) -> None:
        groups = [(group.scores, self.carried) for group in self.groups]
        if self.videos is not None:
            groups.append((self.videos.scores, self.videos.carried))
        for scores, carried in groups:
            # They ascend. The types have checked the lower end.
            if scores and scores[-1] > (MOST_MMD + carried) ** 2 + 0.01:
                raise ValueError(f"a score of {scores[-1]:.6g}; expected at most {(MOST_MMD + carried) ** 2:.6g}")


class _Schema1(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """calibration.json of bundles of schema 1, without sizes and evidence."""

    bundle_id: Sha256
    measured_on: Pair
    scores: tuple[CalibrationScore, ...]
    image_sha256: tuple[ImageHash, ...]
    thresholds: tuple[Threshold, ...]
    review: float
    holds_for: tuple[Pair, ...]
    carried: Carried = 0.0

    def upgraded(self) -> Calibration:
        """Return it with one group for all sizes. Raises ValueError if it contradicts itself."""
        everything = Group(
            above=0.0,
            up_to=None,
            scores=self.scores,
            image_sha256=self.image_sha256,
            thresholds=self.thresholds,
        )
        return Calibration(
            bundle_id=self.bundle_id,
            measured_on=self.measured_on,
            groups=(everything,),
            least_evidence=LEAST_EVIDENCE,
            review=self.review,
            holds_for=self.holds_for,
            carried=self.carried,
        )


def _ascend(values: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(values))

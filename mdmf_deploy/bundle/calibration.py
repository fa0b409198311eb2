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
from typing import Literal, NamedTuple

import msgspec

from mdmf_deploy.bundle.conformal import images_needed, p_value, threshold
from mdmf_deploy.bundle.manifest import SCHEMA_VERSION
from mdmf_deploy.errors import CalibrationError

Verdict = Literal["real", "generated", "uncertain", "uncalibrated", "error"]
Reason = Literal[
    "featureless", "no_calibration_for_this_size", "borderline", "not_verified", "no_thresholds", "other_crops"
]

LEAST_EVIDENCE = 0.25
"""The least share of patches with texture on which a verdict may rest. This figure is ours."""

SIZE_BOUNDS = (0.5, 2.0, 8.0)
"""The default upper bounds of size groups in megapixels. One more group holds all larger images."""


class Judgement(NamedTuple):
    """A calibration's verdict on one image. The fields are those of mdmf_deploy.detection.rows.Row."""

    p_value: float | None
    threshold: float | None
    verdict: Verdict
    reason: Reason | None = None
    size_group: str | None = None


class Pair(msgspec.Struct, frozen=True, order=True):
    """A runtime and the precision of the graph it runs. Thresholds hold for such pairs."""

    runtime: str
    precision: str


class Threshold(msgspec.Struct, frozen=True):
    """score: p <= fpr iff an image's score is above it. None means infinity: too few images for this rate."""

    fpr: float
    score: float | None


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

    above: float
    up_to: float | None
    scores: tuple[float, ...]
    image_sha256: tuple[str, ...]
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


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Scores of real images that are not in the bank, at least one. Checks itself at birth.

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
    """

    bundle_id: str
    measured_on: Pair
    groups: tuple[Group, ...]
    least_evidence: float
    review: float
    holds_for: tuple[Pair, ...]
    carried: float = 0.0

    def __post_init__(self) -> None:
        if not any(group.scores for group in self.groups):
            raise ValueError("it has no score; expected at least one")
        ends = [0.0, *(math.inf if group.up_to is None else group.up_to for group in self.groups)]
        if [group.above for group in self.groups] != ends[:-1] or ends[-1] != math.inf or not _ascend(ends):
            raise ValueError("size groups must follow one another from 0 to any number of megapixels")
        if not self.fprs or any(tuple(entry.fpr for entry in g.thresholds) != self.fprs for g in self.groups):
            raise ValueError("expected at least one threshold, and the same false positive rates in all groups")
        if not self.fpr <= self.review < 1.0:
            raise ValueError(f"review rate {self.review} must be at least {self.fpr} and below 1")
        if not LEAST_EVIDENCE <= self.least_evidence <= 1.0:
            raise ValueError(f"least_evidence {self.least_evidence} must be {LEAST_EVIDENCE} to 1")
        if not (math.isfinite(self.carried) and self.carried >= 0.0):
            raise ValueError(f"carried {self.carried} must be finite and at least 0")

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
    ) -> Calibration:
        """Make a calibration.  fprs: the first one decides.  bounds: upper bounds of the size groups but the last.

        Raises CalibrationError if there is no image, a rate is not in (0, 1), or bounds are not ascending.
        """
        if any(not 0.0 < fpr < 1.0 for fpr in fprs):
            raise CalibrationError(f"false positive rates {', '.join(map(str, fprs))}: each must be between 0 and 1")
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
        group = self.group(pixels)
        if not evidence >= self.least_evidence:
            return Judgement(None, None, "uncertain", "featureless", group.name)
        p = p_value(score, group.scores) if group.scores else None
        if p is None or group.decides is None:
            return Judgement(p, None, "uncertain", "no_calibration_for_this_size", group.name)
        if self.fpr < p <= self.review:
            return Judgement(p, group.decides, "uncertain", "borderline", group.name)
        return Judgement(p, group.decides, "generated" if p <= self.fpr else "real", None, group.name)

    def to_bytes(self) -> bytes:
        """Return calibration.json. Every float reads back to the last bit."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "calibration.json", schema: int = SCHEMA_VERSION) -> Calibration:
        """Read the bytes of to_bytes, or a file of schema 1, whose scores become one group for all sizes.

        Raises CalibrationError naming the file if they are not a calibration.
        """
        try:
            if schema == 1:
                return msgspec.json.decode(data, type=_Schema1).upgraded()
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, ValueError) as error:
            raise CalibrationError(f"{name} is not a calibration ({error}); run `mdmf calibrate`") from error


class _Schema1(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """calibration.json of bundles of schema 1, without sizes and evidence."""

    bundle_id: str
    measured_on: Pair
    scores: tuple[float, ...]
    image_sha256: tuple[str, ...]
    thresholds: tuple[Threshold, ...]
    review: float
    holds_for: tuple[Pair, ...]
    carried: float = 0.0

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

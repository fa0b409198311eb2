"""Calibrate a bundle on held-out real images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mdmf_deploy.bundle.bundle import Bundle, hint, write_bundle
from mdmf_deploy.bundle.calibration import LEAST_EVIDENCE, SIZE_BOUNDS, Calibration, Pair, Scored, VideoGroup
from mdmf_deploy.bundle.conformal import images_needed
from mdmf_deploy.bundle.manifest import CALIBRATION
from mdmf_deploy.errors import CalibrationError
from mdmf_deploy.images.limits import FRAMES
from mdmf_deploy.mmd import score_images
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.tasks.bank.build import Duplicate, Unreadable

if TYPE_CHECKING:
    from mdmf_deploy.detection.feed import Extraction
    from mdmf_deploy.detection.sources import Source
    from mdmf_deploy.runtime import Engine


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """A new calibration, and the images that are not in it.

    in_bank: those that the bank holds.
    duplicates: copies of another one.
    featureless: those with too little texture to say anything.
    errors: those without a score.
    short: videos with fewer frames than asked for, or with frames that cannot be read.
    images, videos: how many were scored now. The other part of the calibration is the bundle's former one.
    """

    calibration: Calibration
    in_bank: tuple[str, ...]
    duplicates: tuple[Duplicate, ...]
    featureless: tuple[str, ...]
    errors: tuple[Unreadable, ...]
    short: tuple[str, ...] = ()
    images: int = 0
    videos: int = 0

    @property
    def shortage(self) -> str | None:
        """A clause that says what is missing, if nothing that was scored now can get a verdict. Else None."""
        calibration = self.calibration
        images = calibration.shortage if self.images else None
        videos = calibration.videos.shortage if self.videos and calibration.videos is not None else None
        return "; ".join(part for part in (images, videos) if part is not None) or None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines that name what will get no verdict: images, sizes of images, and videos."""
        calibration, lines = self.calibration, []
        if self.images and calibration.shortage is not None:
            lines.append(f"no image can be called real or generated: {calibration.shortage}")
        elif self.images and calibration.undecided:
            lines.append(self._undecided())
        if self.videos and calibration.videos is not None and calibration.videos.shortage is not None:
            lines.append(f"no video can be called real or generated: {calibration.videos.shortage}")
        return tuple(lines)

    def _undecided(self) -> str:
        calibration = self.calibration
        small = calibration.undecided
        return (
            f"images of some sizes will be uncertain ({', '.join(small)}): at a false positive rate of "
            f"{calibration.fpr:g} each size needs {images_needed(calibration.fpr)} calibration images"
        )


def default_review(fpr: float) -> float:
    """Return the p-value up to which an image is worth a second look: five times the false positive rate, at most 0.5.

    This rule is ours.
    """
    return max(fpr, min(5.0 * fpr, 0.5))


@dataclass(frozen=True, slots=True)
class Rates:
    """The choices of a calibration.

    fprs: false positive rates. The first one decides.
    review: p-values up to this are "uncertain". None means default_review.
    size_bounds: upper bounds of the size groups in megapixels, ascending. Larger images form one more group.
    frames: taken of each video. Thresholds for videos hold for no other number.
    """

    fprs: Sequence[float]
    review: float | None = None
    size_bounds: Sequence[float] = SIZE_BOUNDS
    frames: int = FRAMES


def calibrate(bundle: Bundle, engine: Engine, sources: Iterable[Source], rates: Rates) -> CalibrationReport:
    """Score held-out real images and videos, and find the thresholds of each size, and of videos, for these rates.

    Without videos, the thresholds for videos stay that the bundle has, and without images those for images.
    Images whose bytes are in the bank would score too low. They are left out and reported. So are images without
    texture, which get no verdict either.
    Raises CalibrationError if verification does not cover the engine, or no image is left.
    """
    check_covered(bundle, engine)
    from mdmf_deploy.detection.pipeline import extract

    extracted = extract(sources, engine, bundle.manifest.preprocessing, frames=rates.frames)
    return gather_calibration(bundle, engine, extracted, rates)


def check_covered(bundle: Bundle, engine: Engine) -> None:
    """Raise CalibrationError unless verification covers this engine."""
    if not bundle.covers(engine.name, engine.precision):
        raise CalibrationError(
            f"{bundle.path}: verification does not cover {engine.name} {engine.precision}, so a threshold would hold "
            f"for nothing; run {hint('verify', bundle.path, '--runtime', engine.name)} first"
        )


def gather_calibration(
    bundle: Bundle, engine: Engine, extracted: Iterable[Extraction], rates: Rates
) -> CalibrationReport:
    """Calibrate, as `calibrate` does, from signatures that are already extracted."""
    reduction = CpuReduction()
    in_bank: list[str] = []
    duplicates: list[Duplicate] = []
    featureless: list[str] = []
    errors: list[Unreadable] = []
    short: list[str] = []
    images: list[Scored] = []
    videos: list[Scored] = []
    first: dict[str, str] = {}
    banked, (low, high) = bundle.bank.hashes, bundle.bank.score_range
    for image in extracted:
        if image.error is not None or image.signatures is None:
            errors.append(Unreadable.of(image))
        elif image.sha256 in banked:
            in_bank.append(image.uri)
        elif image.sha256 in first:
            duplicates.append(Duplicate(image.uri, first[image.sha256]))
        else:
            first[image.sha256] = image.uri
            evidence = image.evidence or 0.0
            [(score, _)] = score_images(reduction, [image.signatures], bundle.bank)
            if not math.isfinite(score):
                errors.append(Unreadable(image.uri, "not_finite", f"its score on {engine.name} is {score}"))
            elif not low <= score <= high:
                text = f"its score on {engine.name} is {score:.6g}, but {max(low, 0.0):g} to {high:.3g} are possible"
                errors.append(Unreadable(image.uri, "impossible_score", text))
            elif evidence < LEAST_EVIDENCE:
                featureless.append(image.uri)
            elif image.frames is not None and len(image.frames.times) != rates.frames:
                short.append(image.uri)
            else:
                scored = Scored(image.sha256, score, (image.width or 0) * (image.height or 0), evidence)
                (images if image.frames is None else videos).append(scored)
    if not images and not videos:
        raise CalibrationError(
            f"no image is left to calibrate on ({len(in_bank)} are in the bank, {len(featureless)} have no texture, "
            f"{len(errors)} unreadable{_too_short(short)}); give real images with texture that the bank has not seen"
        )
    return CalibrationReport(
        _calibration(bundle, Pair(engine.name, engine.precision), images, videos, rates),
        tuple(in_bank),
        tuple(duplicates),
        tuple(featureless),
        tuple(errors),
        tuple(short),
        len(images),
        len(videos),
    )


def _too_short(short: Sequence[str]) -> str:
    return f", {len(short)} are videos of too few frames" if short else ""


def _calibration(
    bundle: Bundle, pair: Pair, images: Sequence[Scored], videos: Sequence[Scored], rates: Rates
) -> Calibration:
    """Calibrate anew by what was scored. The bundle's thresholds for what was not scored stay."""
    before = bundle.calibration
    review = default_review(rates.fprs[0]) if rates.review is None else rates.review
    group = None if before is None else before.videos
    if videos:
        group = VideoGroup.of(videos, rates.frames, rates.fprs, review, pair)
    if not images and before is not None:
        return msgspec.structs.replace(before, videos=group)
    return Calibration.from_images(
        images,
        rates.fprs,
        review,
        bundle_id=bundle.bundle_id,
        measured_on=pair,
        holds_for=[Pair(*covered) for covered in bundle.covered],
        bounds=rates.size_bounds,
        videos=group,
    )


def write_calibration(bundle: Bundle, calibration: Calibration, destination: Path) -> Bundle:
    """Write the bundle with this calibration. Its bundle_id stays.

    Raises CalibrationError if the calibration was made for another bundle_id, BundleError if the destination cannot be
    written.
    """
    if calibration.bundle_id != bundle.bundle_id:
        raise CalibrationError(
            f"calibration for bundle {calibration.bundle_id[:12]} does not belong to {bundle.path} "
            f"({bundle.bundle_id[:12]}); run `mdmf calibrate` on it"
        )
    # A bundle of an older schema gets the present one with its new calibration.
    manifest = msgspec.structs.replace(bundle.manifest, schema_version=calibration.schema)
    return write_bundle(destination, manifest, {**bundle.files(), CALIBRATION: calibration.to_bytes()})

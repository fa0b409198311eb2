"""Calibrate a bundle on held-out real images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mdmf_deploy.bundle.bundle import Bundle, hint, write_bundle
from mdmf_deploy.bundle.calibration import LEAST_EVIDENCE, SIZE_BOUNDS, Calibration, Pair, Scored
from mdmf_deploy.bundle.conformal import images_needed
from mdmf_deploy.bundle.manifest import CALIBRATION, SCHEMA_VERSION
from mdmf_deploy.errors import CalibrationError
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
    """

    calibration: Calibration
    in_bank: tuple[str, ...]
    duplicates: tuple[Duplicate, ...]
    featureless: tuple[str, ...]
    errors: tuple[Unreadable, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line that names the sizes whose images will get no verdict, or none."""
        calibration = self.calibration
        if calibration.shortage is not None:
            return (f"no image can be called real or generated: {calibration.shortage}",)
        small = calibration.undecided
        if not small:
            return ()
        return (
            f"images of some sizes will be uncertain ({', '.join(small)}): at a false positive rate of "
            f"{calibration.fpr:g} each size needs {images_needed(calibration.fpr)} calibration images",
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
    """

    fprs: Sequence[float]
    review: float | None = None
    size_bounds: Sequence[float] = SIZE_BOUNDS


def calibrate(bundle: Bundle, engine: Engine, sources: Iterable[Source], rates: Rates) -> CalibrationReport:
    """Score held-out real images, and find the thresholds of each size for these false positive rates.

    Images whose bytes are in the bank would score too low. They are left out and reported. So are images without
    texture, which get no verdict either.
    Raises CalibrationError if verification does not cover the engine, or no image is left.
    """
    check_covered(bundle, engine)
    from mdmf_deploy.detection.pipeline import extract

    return gather_calibration(bundle, engine, extract(sources, engine, bundle.manifest.preprocessing), rates)


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
    scored: list[Scored] = []
    first: dict[str, str] = {}
    banked = bundle.bank.hashes
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
            elif evidence < LEAST_EVIDENCE:
                featureless.append(image.uri)
            else:
                scored.append(Scored(image.sha256, score, (image.width or 0) * (image.height or 0), evidence))
    if not scored:
        raise CalibrationError(
            f"no image is left to calibrate on ({len(in_bank)} are in the bank, {len(featureless)} have no texture, "
            f"{len(errors)} unreadable); give real images with texture that the bank has not seen"
        )
    calibration = Calibration.from_images(
        scored,
        rates.fprs,
        default_review(rates.fprs[0]) if rates.review is None else rates.review,
        bundle_id=bundle.bundle_id,
        measured_on=Pair(engine.name, engine.precision),
        holds_for=[Pair(*pair) for pair in bundle.covered],
        bounds=rates.size_bounds,
    )
    return CalibrationReport(calibration, tuple(in_bank), tuple(duplicates), tuple(featureless), tuple(errors))


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
    # A bundle of an older schema gets this one with its new calibration.
    manifest = msgspec.structs.replace(bundle.manifest, schema_version=SCHEMA_VERSION)
    return write_bundle(destination, manifest, {**bundle.files(), CALIBRATION: calibration.to_bytes()})

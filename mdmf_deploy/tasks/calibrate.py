"""Calibrate a bundle on held-out real images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdmf_deploy.bundle.bundle import Bundle, hint, write_bundle
from mdmf_deploy.bundle.calibration import Calibration, Pair, images_needed
from mdmf_deploy.bundle.manifest import CALIBRATION
from mdmf_deploy.errors import CalibrationError
from mdmf_deploy.mmd import score_images
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.tasks.bank.build import Duplicate, Unreadable

if TYPE_CHECKING:
    from mdmf_deploy.detection.feed import Extraction, Source
    from mdmf_deploy.runtime import Engine


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """A new calibration, and the images that are not in it.

    in_bank: those that the bank holds.
    duplicates: copies of another one.
    errors: those without a score.
    """

    calibration: Calibration
    in_bank: tuple[str, ...]
    duplicates: tuple[Duplicate, ...]
    errors: tuple[Unreadable, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line for each rate that this many images cannot resolve."""
        n = len(self.calibration.scores)
        return tuple(
            f"{n} images cannot show a false positive rate of {entry.fpr:g}: no score can be called generated at it; "
            f"give at least {images_needed(entry.fpr)} images"
            for entry in self.calibration.thresholds
            if entry.score is None
        )


def default_review(fpr: float) -> float:
    """Return the p-value up to which an image is worth a second look: five times the false positive rate, at most 0.5.

    This rule is ours.
    """
    return max(fpr, min(5.0 * fpr, 0.5))


def calibrate(
    bundle: Bundle, engine: Engine, sources: Iterable[Source], fprs: Sequence[float], review: float | None = None
) -> CalibrationReport:
    """Score held-out real images, and find the thresholds for these false positive rates, the deciding one first.

    Images whose bytes are in the bank would score too low. They are left out and reported.
    Raises CalibrationError if verification does not cover the engine, or no image is left.
    """
    check_covered(bundle, engine)
    from mdmf_deploy.detection.pipeline import extract

    return gather_calibration(bundle, engine, extract(sources, engine, bundle.manifest.preprocessing), fprs, review)


def check_covered(bundle: Bundle, engine: Engine) -> None:
    """Raise CalibrationError unless verification covers this engine."""
    if not bundle.covers(engine.name, engine.precision):
        raise CalibrationError(
            f"{bundle.path}: verification does not cover {engine.name} {engine.precision}, so a threshold would hold "
            f"for nothing; run {hint('verify', bundle.path, '--runtime', engine.name)} first"
        )


def gather_calibration(
    bundle: Bundle, engine: Engine, extracted: Iterable[Extraction], fprs: Sequence[float], review: float | None = None
) -> CalibrationReport:
    """Calibrate, as `calibrate` does, from signatures that are already extracted."""
    reduction = CpuReduction()
    in_bank: list[str] = []
    duplicates: list[Duplicate] = []
    errors: list[Unreadable] = []
    scores: dict[str, float] = {}
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
            [(score, _)] = score_images(reduction, [image.signatures], bundle.bank)
            if math.isfinite(score):
                scores[image.sha256] = score
            else:
                errors.append(Unreadable(image.uri, "not_finite", f"its score on {engine.name} is {score}"))
    if not scores:
        raise CalibrationError(
            f"no image is left to calibrate on ({len(in_bank)} are in the bank, {len(errors)} unreadable); "
            "give real images that the bank has not seen"
        )
    calibration = Calibration.from_scores(
        scores,
        fprs,
        default_review(fprs[0]) if review is None else review,
        bundle_id=bundle.bundle_id,
        measured_on=Pair(engine.name, engine.precision),
        holds_for=[Pair(*pair) for pair in bundle.covered],
    )
    return CalibrationReport(calibration, tuple(in_bank), tuple(duplicates), tuple(errors))


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
    return write_bundle(destination, bundle.manifest, {**bundle.files(), CALIBRATION: calibration.to_bytes()})

"""Verify at the level of decisions: does an exported model still give the verdicts of its source?

Both extract signatures of the same images, and both are scored against the bundle's own bank. That bank, and thresholds
taken with it, decide in service, so the question is how far rounding moves an image against them. A drift common to
images and bank would partly cancel in service, but counts in full here. The gate thus errs on the side of refusing.
On few images one swapped pair already breaks a rank correlation of 0.999. Give more images rather than a laxer limit.
Signatures are compared crop by crop, scores image by image, each the mean over the crops of the bundle's plan. Probe
images are single crops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.conformal import threshold
from mdmf_deploy.bundle.manifest import BANK, PROBES, Verification
from mdmf_deploy.bundle.probe_images import probe_crops, probes_from_bytes
from mdmf_deploy.bundle.recipe import GateLimits, Preprocessing
from mdmf_deploy.errors import BankError, BundleError, GateFailed, ShapeMismatch, UsageError
from mdmf_deploy.hardware.host import cores, this_cpu
from mdmf_deploy.mmd.cpu import CpuReduction, leave_one_out
from mdmf_deploy.mmd.reference import check_self_term

if TYPE_CHECKING:
    from mdmf_deploy.runtime import Engine

Signatures = NDArray[np.float32]
_FPR = 0.05
_BATCH = 8
_BANK_IMAGES = 256
# Scores are sums of kernel values, at most 4. Scores that differ by less than this are the same.
_NO_SPREAD = 1e-12

NOT_JUDGED_ON_PROBES = frozenset({"rank_correlation"})
"""Figures without a limit on the 16 drawn probe images, which may score too much alike to be ranked."""


class Scale(NamedTuple):
    """The scale of real scores, by which a change of score is judged.

    spread: their standard deviation.
    threshold: an image that scores above it counts as generated.
    """

    spread: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Gate:
    """The bank and the limits that an engine is held to.

    reference: names the source and the images, for people.
    scale: None takes it from the source's scores, which must then be those of real images.
    """

    bank: Bank
    limits: GateLimits
    reference: str
    scale: Scale | None = None


@dataclass(frozen=True)
class SourceSignatures:
    """Images, and the signatures (n, N, d) that the source extracted from the readable ones, by content hash."""

    paths: Sequence[Path]
    by_hash: Mapping[str, Signatures]

    def judge(self, engine: Engine, preprocessing: Preprocessing, gate: Gate) -> Verification:
        """Extract signatures of the same images with an engine, and compare."""
        exported = signatures_by_hash(self.paths, engine, preprocessing)
        hashes = sorted(self.by_hash)
        crops = [len(self.by_hash[sha256]) for sha256 in hashes]
        return compare(_joined(self.by_hash, hashes), _joined(exported, hashes), engine, gate, crops)


def verify_probes(bundle: Bundle, engine: Engine) -> Verification:
    """Compare an engine's signatures of the probe images with those stored in the bundle at export. Needs no files.

    The figures NOT_JUDGED_ON_PROBES are measured all the same.
    Raises BundleError if the bundle has no probes, or others than this version draws, and BankError if the self term of
    its bank is not that of its points.
    """
    check_self_term(bundle.bank, str(bundle.path / BANK))
    if PROBES not in bundle.manifest.files:
        raise BundleError(f"{bundle.path}: has no {PROBES}; export it again, or give --checkpoint and images")
    preprocessing = bundle.manifest.preprocessing
    crops = probe_crops(preprocessing.crop)
    card = bundle.manifest.model
    shape = (card.pool**2, card.signature)
    source = probes_from_bytes(bundle.read(PROBES), crops, str(bundle.path / PROBES), shape)
    reference = f"{bundle.manifest.provenance.recipe}'s source at export, {len(crops)} probes"
    exported = extract_crops(crops, engine, preprocessing)
    limits = msgspec.structs.replace(bundle.manifest.limits, min_rank_correlation=-1.0)
    return compare(source, exported, engine, Gate(bundle.bank, limits, reference, scale_in(bundle)))


def verify_images(
    bundle: Bundle, engines: Sequence[Engine], source: Engine, paths: Iterable[Path]
) -> tuple[list[Verification], int]:
    """Compare engines with their source on real images, and count the images that could not be read or came twice.

    Raises UsageError if no image could be read.
    """
    check_self_term(bundle.bank, str(bundle.path / BANK))
    preprocessing, paths = bundle.manifest.preprocessing, list(paths)
    extracted = SourceSignatures(paths, signatures_by_hash(paths, source, preprocessing))
    readable = len(extracted.by_hash)
    if not readable:
        raise UsageError(
            f"verify: none of the {len(paths)} inputs is a readable image; give a folder of real photographs"
        )
    try:
        # The bank holds one crop of each of its images. Scores of several crops spread less.
        scale = None if bundle.calibration is None and preprocessing.crops > 1 else scale_in(bundle)
    except BankError:
        scale = None
    # Without a scale, the images' own scores are one, since they are real.
    gate = Gate(bundle.bank, bundle.manifest.limits, f"{source.name}, {readable} images", scale)
    return [extracted.judge(engine, preprocessing, gate) for engine in engines], len(paths) - readable


def signatures_by_hash(paths: Iterable[Path], engine: Engine, preprocessing: Preprocessing) -> dict[str, Signatures]:
    """Return the signatures (n, N, d) of every readable image's crops, by content hash."""
    from mdmf_deploy.detection.pipeline import extract

    return {s.sha256: s.signatures for s in extract(paths, engine, preprocessing) if s.signatures is not None}


def _joined(by_hash: Mapping[str, Signatures], hashes: Sequence[str]) -> Signatures:
    return np.concatenate([by_hash[sha256] for sha256 in hashes])


def extract_crops(crops: NDArray[np.uint8], engine: Engine, preprocessing: Preprocessing) -> Signatures:
    """Return the signatures (B, N, d) of uint8 crops (B, S, S, 3), extracted in small batches."""
    from mdmf_deploy.images.crops import normalise

    batches = (crops[start : start + _BATCH] for start in range(0, len(crops), _BATCH))
    return np.concatenate([engine(normalise(batch, preprocessing)) for batch in batches])


def compare(
    source: Signatures, exported: Signatures, engine: Engine, gate: Gate, crops: Sequence[int] | None = None
) -> Verification:
    """Compare an engine's signatures (B, N, d) with its source's, crop by crop, and judge the change of images' scores.

    crops: how many of the B crops belong to each image, in order. None means one.
    Raises ShapeMismatch if the two differ in shape or are empty, GateFailed if the source's values are not finite, or
    its scores are some that no image can have.
    """
    if source.shape != exported.shape or len(source) == 0:
        raise ShapeMismatch(
            f"verification: expected signatures {source.shape} of one image or more, got {exported.shape}"
        )
    crops = [1] * len(source) if crops is None else crops
    before = _scores(source, gate.bank, crops)
    if not (np.isfinite(source).all() and np.isfinite(before).all()):
        raise GateFailed(
            f"verification ({gate.reference}): the source's own signatures or scores are not finite, so nothing can be "
            "held against them; check the checkpoint, and export it again"
        )
    low, high = gate.bank.score_range
    if not (low <= before.min() and before.max() <= high):
        raise GateFailed(
            f"verification ({gate.reference}): the source's scores are {before.min():.6g} to {before.max():.6g}, but "
            f"{max(low, 0.0):g} to {high:.3g} are possible; the bank is wrong, build it again with `mdmf bank build`"
        )
    finite = bool(np.isfinite(exported).all())
    if not finite:
        exported = np.nan_to_num(exported, nan=0.0, posinf=0.0, neginf=0.0)
    after = _scores(exported, gate.bank, crops)
    scale = gate.scale or scale_of(before)
    generated_before, generated_after = before > scale.threshold, after > scale.threshold
    error = np.abs(exported.astype(np.float64) - source)
    figures = {
        # A spread of zero (copies of one image) leaves no unit to measure in. Any change is then too large.
        "max_score_change": float(np.abs(after - before).max()) / max(scale.spread, _NO_SPREAD),
        "rank_correlation": rank_correlation(before, after),
        "flipped_verdicts": float(np.mean(generated_before != generated_after)),
        "fpr_change": float(abs(generated_after.mean() - generated_before.mean())),
    }
    reasons = [f"{name} {figures[name]:.3g} beyond {limit:g}" for name, limit in _missed(figures, gate.limits)]
    if _blind(before, source, scale) and not np.array_equal(source, exported):
        reasons.insert(0, "scores that are all the same, whatever the signatures: they cannot tell engines apart")
    if not (low <= after.min() and after.max() <= high):
        reasons.insert(0, f"scores of {after.min():.3g} to {after.max():.3g}, which no image can have")
    if not finite:
        reasons.insert(0, "signatures that are not finite (taken for 0 in the figures)")
    return Verification(
        runtime=engine.name,
        precision=engine.precision,  # type: ignore[arg-type]
        passed=not reasons,
        reasons=tuple(reasons),
        reference=gate.reference,
        images=len(crops),
        max_signature_error=float(error.max()),
        mean_signature_error=float(error.mean()),
        score_spread=scale.spread,
        threshold=scale.threshold,
        # An engine on a GPU adds the GPU, its driver, its library and its build profile.
        environment=environment(engine.name) | getattr(engine, "environment", {}),
        **figures,
    )


def _scores(signatures: Signatures, bank: Bank, crops: Sequence[int]) -> NDArray[np.float64]:
    return np.array([score for score, _ in CpuReduction()(signatures, bank).of_images(crops)])


def limits_by_figure(limits: GateLimits) -> dict[str, float]:
    """Map fields of Verification to their limits, in the order in which they are shown."""
    return {
        "max_score_change": limits.max_score_change,
        "rank_correlation": limits.min_rank_correlation,
        "flipped_verdicts": limits.max_flipped_verdicts,
        "fpr_change": limits.max_fpr_change,
    }


def _missed(figures: dict[str, float], limits: GateLimits) -> Iterable[tuple[str, float]]:
    for name, limit in limits_by_figure(limits).items():
        good = figures[name] >= limit if name == "rank_correlation" else figures[name] <= limit
        # "not good" rather than the opposite comparison, so that a NaN misses every limit.
        if not good:
            yield name, limit


def _blind(scores: NDArray[np.float64], signatures: Signatures, scale: Scale) -> bool:
    """Return whether scores carry no information: real ones have no spread, or different images all score the same."""
    different = bool((signatures != signatures[:1]).any())
    return scale.spread <= _NO_SPREAD or (different and float(np.ptp(scores)) <= _NO_SPREAD)


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation of (n,) and (n,), in [-1, 1]. Ties have their mean rank.

    It is 1 where both are constant, and 0 where only one is.
    """
    ranks = [_ranks(values) - (len(values) - 1) / 2 for values in (a, b)]
    norms = [float(np.linalg.norm(r)) for r in ranks]
    if min(norms) == 0:
        return 1.0 if max(norms) == 0 else 0.0
    return float(ranks[0] @ ranks[1]) / (norms[0] * norms[1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: NDArray[np.float64] = np.cumsum(counts) - (counts + 1) / 2
    return means[inverse]


def environment(runtime: str) -> dict[str, str]:
    """Describe this machine, as far as it can change a figure or a speed."""
    import platform
    from importlib import metadata

    processor, flags = this_cpu()
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": processor,
        "cpu": " ".join(flags),
        "cores": str(cores()),
    }
    for package in ("numpy", runtime):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def scale_of(real_scores: NDArray[np.float64]) -> Scale:
    """Return the scale of these scores (n,) of real images: their spread, and a threshold at 5% false positives."""
    return Scale(float(np.std(real_scores)), float(np.quantile(real_scores, 1 - _FPR)))


def scale_in(bundle: Bundle) -> Scale:
    """Return the scale of the bundle's real scores: those of its calibration, or else of its bank's own images.

    The images of a compressed bank can no longer be scored. Its scale is that of the newest verification record, or
    else the one that was newest when the bank was compressed.
    Raises BankError if there is none of these, or the bank has a single image.
    """
    calibration = bundle.calibration
    if calibration is not None and not calibration.scores:
        calibration = None  # calibrated on videos alone
    if calibration is None and bundle.bank.compression.get("method") != "none":
        return _recorded_scale(bundle)
    if calibration is None:
        try:
            return scale_of(leave_one_out(bundle.bank, _BANK_IMAGES))
        except BankError as error:
            raise BankError(f"{error}; or calibrate the bundle first") from error
    # Probes and crops have no size, so one threshold over all sizes stands for those of the groups.
    decided = threshold(calibration.scores, calibration.fpr)
    measured = scale_of(np.array(calibration.scores))
    return Scale(measured.spread, measured.threshold if decided is None else decided)


def newest_scale(records: Sequence[Verification]) -> Scale | None:
    """Return the scale of the newest record that has a spread."""
    return next((Scale(one.score_spread, one.threshold) for one in reversed(records) if one.score_spread > 0.0), None)


def _recorded_scale(bundle: Bundle) -> Scale:
    scale = newest_scale(bundle.manifest.verification)
    if scale is not None:
        return scale
    kept = bundle.bank.compression.get("scale")
    if isinstance(kept, list):
        return Scale(*map(float, kept))
    raise BankError(
        f"{bundle.path}: its bank is compressed, and neither a calibration nor a verification record gives the spread "
        "of real scores; build it whole, run `mdmf calibrate`, and `mdmf bank compress` last, or "
        "verify with --checkpoint and real images"
    )


def record(bundle: Bundle, *verifications: Verification, destination: Path | None = None) -> Bundle:
    """Append records to the bundle's manifest, in place or in a copy. The bundle_id and the calibration stay.

    Raises BundleError if it cannot be written.
    """
    records = (*bundle.manifest.verification, *verifications)
    manifest = msgspec.structs.replace(bundle.manifest, verification=records)
    return write_bundle(destination or bundle.path, manifest, bundle.files())

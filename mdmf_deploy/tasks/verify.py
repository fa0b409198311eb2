"""Verification at the level of decisions: does an exported model still say what its source says?

Both sign the same images, and both are scored against the bundle's own bank: that bank, and thresholds taken with
it, are what decides in service, so the question is how far rounding moves an image against them.  A drift common to
images and bank would partly cancel in service but counts in full here; the gate errs on the side of refusing.
On few images one swapped pair already breaks a rank correlation of 0.999: give more images rather than a laxer limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.manifest import PROBES, Verification
from mdmf_deploy.bundle.probe_images import probe_crops, probes_from_bytes
from mdmf_deploy.bundle.recipe import GateLimits, Preprocessing
from mdmf_deploy.errors import BankError, BundleError, GateFailed, ShapeMismatch, UsageError
from mdmf_deploy.hardware.host import cores, this_cpu
from mdmf_deploy.mmd.cpu import CpuReduction, leave_one_out

if TYPE_CHECKING:
    from mdmf_deploy.runtime import Engine

Signatures = NDArray[np.float32]
_FPR = 0.05
_BATCH = 8
_BANK_IMAGES = 256
# Scores are sums of kernel values, at most 4: what differs by less than this is the same.
_NO_SPREAD = 1e-12


class Scale(NamedTuple):
    """What real scores are like, to judge a change of score by.

    spread: their standard deviation.  threshold: above it an image counts as generated.
    """

    spread: float
    threshold: float


def scale_of(real_scores: NDArray[np.float64]) -> Scale:
    """The scale these scores (n,) of real images set: their spread, and a threshold at 5% false positives."""
    return Scale(float(np.std(real_scores)), float(np.quantile(real_scores, 1 - _FPR)))


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's, ties given their mean rank; (n,) and (n,) -> [-1, 1].  1 where both are constant."""
    ranks = [_ranks(values) - (len(values) - 1) / 2 for values in (a, b)]
    norms = [float(np.linalg.norm(r)) for r in ranks]
    if min(norms) == 0:
        return 1.0 if max(norms) == 0 else 0.0
    return float(ranks[0] @ ranks[1]) / (norms[0] * norms[1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: NDArray[np.float64] = np.cumsum(counts) - (counts + 1) / 2
    return means[inverse]


def compare(
    source: Signatures,
    exported: Signatures,
    bank: Bank,
    limits: GateLimits,
    engine: Engine,
    *,
    reference: str,
    scale: Scale | None = None,
) -> Verification:
    """Hold what an engine signed (B, N, d) against what its source signed, image by image, by the recipe's limits.

    scale: None takes it from the source's scores, which must then be those of real images.
    reference: what was compared with what, for people.
    Raises ShapeMismatch if the two differ in shape or are empty, GateFailed if the source's values are not finite.
    """
    if source.shape != exported.shape or len(source) == 0:
        raise ShapeMismatch(
            f"verification: expected signatures {source.shape} of one image or more, got {exported.shape}"
        )
    reduction = CpuReduction()
    before = reduction(source, bank).mmd2
    if not (np.isfinite(source).all() and np.isfinite(before).all()):
        raise GateFailed(
            f"verification ({reference}): the source's own signatures or scores are not finite, so nothing can be held "
            "against them; check the checkpoint, and export it again"
        )
    finite = bool(np.isfinite(exported).all())
    if not finite:
        exported = np.nan_to_num(exported, nan=0.0, posinf=0.0, neginf=0.0)
    after = reduction(exported, bank).mmd2
    scale = scale or scale_of(before)
    generated_before, generated_after = before > scale.threshold, after > scale.threshold
    error = np.abs(exported.astype(np.float64) - source)
    figures = {
        # A spread of zero (copies of one image) leaves no unit to measure in; any change is then too large.
        "max_score_change": float(np.abs(after - before).max()) / max(scale.spread, _NO_SPREAD),
        "rank_correlation": rank_correlation(before, after),
        "flipped_verdicts": float(np.mean(generated_before != generated_after)),
        "fpr_change": float(abs(generated_after.mean() - generated_before.mean())),
    }
    reasons = [f"{name} {figures[name]:.3g} beyond {limit:g}" for name, limit in _missed(figures, limits)]
    if _blind(before, source, scale) and not np.array_equal(source, exported):
        reasons.insert(0, "scores that are all the same, whatever the signatures: they cannot tell engines apart")
    if not finite:
        reasons.insert(0, "signatures that are not finite (taken for 0 in the figures)")
    return Verification(
        runtime=engine.name,
        precision=engine.precision,  # type: ignore[arg-type]
        passed=not reasons,
        reasons=tuple(reasons),
        reference=reference,
        images=len(source),
        max_signature_error=float(error.max()),
        mean_signature_error=float(error.mean()),
        score_spread=scale.spread,
        threshold=scale.threshold,
        # An engine on a GPU adds which one, its driver, its library and its build profile.
        environment=environment(engine.name) | getattr(engine, "environment", {}),
        **figures,
    )


def _blind(scores: NDArray[np.float64], signatures: Signatures, scale: Scale) -> bool:
    """Whether scores say nothing: real ones have no spread, or different images all score the same."""
    different = bool((signatures != signatures[:1]).any())
    return scale.spread <= _NO_SPREAD or (different and float(np.ptp(scores)) <= _NO_SPREAD)


def limits_by_figure(limits: GateLimits) -> dict[str, float]:
    """Verification's field -> its limit, in the order in which they are shown."""
    return {
        "max_score_change": limits.max_score_change,
        "rank_correlation": limits.min_rank_correlation,
        "flipped_verdicts": limits.max_flipped_verdicts,
        "fpr_change": limits.max_fpr_change,
    }


def _missed(figures: dict[str, float], limits: GateLimits) -> Iterable[tuple[str, float]]:
    for name, limit in limits_by_figure(limits).items():
        good = figures[name] >= limit if name == "rank_correlation" else figures[name] <= limit
        # Written so that a NaN is never good.
        if not good:
            yield name, limit


def environment(runtime: str) -> dict[str, str]:
    """What this machine is, as far as it can change a figure or a speed."""
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


def extract_crops(crops: NDArray[np.uint8], engine: Engine, preprocessing: Preprocessing) -> Signatures:
    """uint8 crops (B, S, S, 3) -> signatures (B, N, d), in small batches."""
    from mdmf_deploy.images.decode import normalise

    batches = (crops[start : start + _BATCH] for start in range(0, len(crops), _BATCH))
    return np.concatenate([engine(normalise(batch, preprocessing)) for batch in batches])


def signatures_by_hash(paths: Iterable[Path], engine: Engine, preprocessing: Preprocessing) -> dict[str, Signatures]:
    """Signatures (N, d) of every readable image, by content hash."""
    from mdmf_deploy.detection.pipeline import extract

    return {s.sha256: s.signatures for s in extract(paths, engine, preprocessing) if s.signatures is not None}


def verify_probes(bundle: Bundle, engine: Engine) -> Verification:
    """Compare an engine with what the bundle's source made of the probe images at export: no files needed.

    Raises BundleError if the bundle has no probes, or others than this version draws.
    """
    if PROBES not in bundle.manifest.files:
        raise BundleError(f"{bundle.path}: has no {PROBES}; export it again, or give --checkpoint and images")
    preprocessing = bundle.manifest.preprocessing
    crops = probe_crops(preprocessing.crop)
    source = probes_from_bytes((bundle.path / PROBES).read_bytes(), crops, str(bundle.path / PROBES))
    exported = extract_crops(crops, engine, preprocessing)
    reference = f"{bundle.manifest.provenance.recipe}'s source at export, {len(crops)} probes"
    return compare(
        source, exported, bundle.bank, bundle.manifest.limits, engine, reference=reference, scale=scale_in(bundle)
    )


def verify_images(
    bundle: Bundle, engines: Sequence[Engine], source: Engine, paths: Iterable[Path]
) -> tuple[list[Verification], int]:
    """Compare engines with their source on real images of the user's; also how many of them could not be read.

    Raises UsageError if none could.
    """
    preprocessing, paths = bundle.manifest.preprocessing, list(paths)
    unique = signatures_by_hash(paths, source, preprocessing)
    if not unique:
        raise UsageError(
            f"verify: none of the {len(paths)} inputs is a readable image; give a folder of real photographs"
        )
    hashes = sorted(unique)
    extracted = np.stack([unique[sha256] for sha256 in hashes])
    try:
        scale = scale_in(bundle)
    except BankError:
        # The images are real: their own scores are a scale, too.
        scale = None
    results = []
    for engine in engines:
        exported = signatures_by_hash(paths, engine, preprocessing)
        results.append(
            compare(
                extracted,
                np.stack([exported[sha256] for sha256 in hashes]),
                bundle.bank,
                bundle.manifest.limits,
                engine,
                reference=f"{source.name}, {len(hashes)} images",
                scale=scale,
            )
        )
    return results, len(paths) - len(hashes)


def scale_in(bundle: Bundle) -> Scale:
    """The scale of real scores that the bundle knows: its calibration's, or else its bank's own images'.

    A compressed bank's images are no more there to be scored: instead, that of the newest verification record, or else
    of the newest there was when the bank was compressed.
    Raises BankError if there is none of these, or the bank has a single image.
    """
    calibration = bundle.calibration
    if calibration is None and bundle.bank.compression.get("method") != "none":
        return _recorded_scale(bundle)
    if calibration is None:
        try:
            return scale_of(leave_one_out(bundle.bank, _BANK_IMAGES))
        except BankError as error:
            raise BankError(f"{error}; or calibrate the bundle first") from error
    decided = calibration.thresholds[0].score if calibration.thresholds else None
    measured = scale_of(np.array(calibration.scores))
    return Scale(measured.spread, measured.threshold if decided is None else decided)


def newest_scale(records: Sequence[Verification]) -> Scale | None:
    """The newest record's, of those that have a spread."""
    return next((Scale(one.score_spread, one.threshold) for one in reversed(records) if one.score_spread > 0.0), None)


def _recorded_scale(bundle: Bundle) -> Scale:
    scale = newest_scale(bundle.manifest.verification)
    if scale is not None:
        return scale
    kept = bundle.bank.compression.get("scale")
    if isinstance(kept, list):
        return Scale(*map(float, kept))
    raise BankError(
        f"{bundle.path}: its bank is compressed, and neither calibration nor verification record tells how real scores "
        "spread; build it whole, run `mdmf verify` and `mdmf calibrate`, and `mdmf bank compress` last, or verify with "
        "--checkpoint and real images"
    )


def record(bundle: Bundle, *verifications: Verification, destination: Path | None = None) -> Bundle:
    """Append to the bundle's manifest, in place or in a copy at the destination; bundle_id and calibration stay.

    Raises BundleError if it cannot be written.
    """
    records = (*bundle.manifest.verification, *verifications)
    manifest = msgspec.structs.replace(bundle.manifest, verification=records)
    return write_bundle(destination or bundle.path, manifest, bundle.files())

"""A bundle in, the same bundle with a compressed bank out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle, check_bank, hint, write_bundle
from mdmf_deploy.bundle.calibration import Calibration, Threshold, threshold
from mdmf_deploy.bundle.manifest import BANK, CALIBRATION, FileEntry, Manifest, Verification
from mdmf_deploy.errors import BankError, UsageError
from mdmf_deploy.mmd.compress.bank_rows import BankFile
from mdmf_deploy.mmd.compress.fit import CANDIDATES, SAMPLE, Fitted, OutOfReach, compress
from mdmf_deploy.tasks.bank.inspect import bandwidth_warning, mean_kernel
from mdmf_deploy.tasks.verify import newest_scale

METHOD = "f/P-greedy"


@dataclass(frozen=True, slots=True)
class Compressed:
    """What became of a bundle.

    points, of: signatures now and at first, before any compression.  max_mmd_change: the certificate, against the bank
    as it was at first.  spread: standard deviation of MMD over the calibration images, None without any.
    kept: why the bank is as it was; empty if it is not.  calibration: whether one was carried over.
    carried, dropped: verification records that are kept with a bound added, and that are gone.
    """

    bundle: Bundle
    points: int
    of: int
    max_mmd_change: float
    spread: float | None
    self_term: float
    mean_kernel: float | None
    kept: str
    calibration: bool
    carried: int
    dropped: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line on a bandwidth that makes nearly all kernel values 0 or 1."""
        warning = bandwidth_warning(self.mean_kernel, self.of, self.bundle.manifest.model.sigma)
        return (warning,) if warning else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines on what was carried over, and on what to run."""
        path = self.bundle.path
        if self.kept:
            return (f"the bank stays as it is: {self.kept}",)
        notes = []
        if self.calibration:
            notes.append(
                "calibration carried over, its scores raised by the certificate; "
                f"{hint('calibrate', path, 'REAL_PHOTOS')} would make it exact"
            )
        verify = hint("verify", path, "--runtime all")
        if self.carried:
            notes.append(
                f"{self.carried} verification records carried over, their score change raised by the certificate; "
                f"rank, flips and rate not measured again: {verify} does"
            )
        if self.dropped:
            notes.append(f"{self.dropped} verification records no longer hold; run {verify}")
        return tuple(notes)

    @property
    def facts(self) -> dict[str, object]:
        """Name -> value, for a table or JSON."""
        in_spreads = self.max_mmd_change / self.spread if self.spread else None
        return {
            "bundle": str(self.bundle.path),
            "bundle_id": self.bundle.bundle_id,
            "signatures": self.points,
            "of_signatures": self.of,
            "max_mmd_change": self.max_mmd_change,
            "mmd_spread": self.spread,
            "max_error": in_spreads,
            "self_term": self.self_term,
            "bytes": self.bundle.manifest.files[BANK].size,
        }


def compress_bundle(
    bundle: Bundle,
    destination: Path,
    *,
    points: int | None = None,
    max_error: float | None = None,
    candidates: int = CANDIDATES,
) -> Compressed:
    """Write the bundle with a bank of at most `points` signatures, or as few as certify max_error.

    max_error: most that any image's MMD may change, in standard deviations of MMD over the calibration images.
    The bank is read block by block.  The calibration is carried over, and verification as far as a bound allows; the
    rest of it has to be measured again (mdmf_deploy.tasks.bank.compress).
    Raises UsageError unless exactly one of the two is given, BankError if max_error is out of reach or the bundle has
    no calibration to measure it by, BundleError if the destination cannot be written.
    """
    if (points is None) == (max_error is None):
        raise UsageError("bank compress: give either --points or --max-error")
    if points is not None and points < 1:
        raise UsageError(f"--points must be at least 1, got {points}")
    if max_error is not None and not (math.isfinite(max_error) and max_error > 0.0):
        raise UsageError(f"--max-error must be above 0, got {max_error}")
    if candidates < 1:
        raise UsageError(f"--candidates must be at least 1, got {candidates}")
    file = BankFile(bundle.path / BANK)
    spread = mmd_spread(bundle)
    before = float(file.compression.get("max_mmd_change", 0.0))
    of = int(file.compression.get("of", file.rows))
    if points is not None and points >= file.rows:
        asked = f"it has {file.rows} signatures, no more than asked for"
        return _as_it_was(bundle, destination, file, before, of, spread, asked)
    allowed = None if max_error is None else _allowed(bundle, max_error, spread, before)
    try:
        fitted = compress(file, file.sigma, file.self_term, points=points, max_mmd=allowed, candidates=candidates)
    except OutOfReach as error:
        if spread is None or max_error is None:
            raise
        raise BankError(_out_of_reach(bundle, error, file.rows, candidates, max_error, spread, before)) from error
    if len(fitted.weights) >= file.rows:
        needed = f"none of fewer than its {file.rows} signatures certifies so small a change"
        return _as_it_was(bundle, destination, file, before, of, spread, needed)
    change = before + fitted.mmd
    compression: dict[str, object] = {"method": METHOD, "of": of, "max_mmd_change": change, "spread": spread}
    scale = newest_scale(bundle.manifest.verification) or file.compression.get("scale")
    if scale is not None:
        compression["scale"] = list(scale)
    bank = _bank(file, fitted, compression)
    check_bank(bank, bundle.manifest, BANK)
    new, calibration = _write(bundle, destination, bank, fitted.mmd, file.self_term)
    records = new.manifest.verification
    return Compressed(
        new,
        len(fitted.weights),
        of,
        change,
        spread,
        bank.self_term,
        mean_kernel(file.self_term, file.compression, file.rows),
        kept="",
        calibration=calibration,
        carried=sum(record.passed for record in records),
        dropped=len(bundle.manifest.verification) - len(records),
    )


def mmd_spread(bundle: Bundle) -> float | None:
    """Standard deviation of MMD, not squared, over the calibration images; None without a calibration."""
    calibration = bundle.calibration
    if calibration is None:
        return None
    return float(np.std(np.sqrt(np.maximum(calibration.scores, 0.0))))


def _allowed(bundle: Bundle, max_error: float, spread: float | None, before: float) -> float:
    """How much of max_error is left for this compression, in MMD."""
    if spread is None:
        raise BankError(
            f"{bundle.path}: --max-error is measured by the spread of calibration scores, and there is no calibration; "
            f"run {hint('calibrate', bundle.path, 'REAL_PHOTOS')} first, or give --points"
        )
    allowed = max_error * spread - before
    if allowed <= 0.0:
        raise BankError(
            f"{bundle.path}: its bank is compressed already, to within {before / spread:.3g} spreads of MMD if at all; "
            "start from the bank it was made of, or give a larger --max-error"
            if spread > 0.0
            else f"{bundle.path}: all calibration images score the same, so there is no spread; give --points"
        )
    return allowed


def _out_of_reach(
    bundle: Bundle, error: OutOfReach, rows: int, candidates: int, max_error: float, spread: float, before: float
) -> str:
    # More of them help only where the option was what kept their number down.
    more = error.candidates == candidates < min(rows, SAMPLE)
    remedy = "more --candidates" if more else "a larger --max-error"
    return (
        f"{bundle.path}: {error.points} of {rows} signatures reach {(before + error.mmd) / spread:.3g} spreads of MMD, "
        f"not {max_error:g}; give {remedy}"
    )


def _bank(file: BankFile, fitted: Fitted, compression: dict[str, object]) -> Bank:
    return Bank(
        fitted.signatures,
        fitted.weights,
        file.sigma,
        fitted.self_term,
        np.concatenate([file.source(int(place), int(place) + 1) for place in fitted.places]),
        file.sources,
        file.model_sha256,
        compression,
    )


def _write(bundle: Bundle, destination: Path, bank: Bank, mmd: float, self_term: float) -> tuple[Bundle, bool]:
    """The new bundle, and whether it has a calibration."""
    data = bank.to_bytes()
    manifest = bundle.manifest
    entry = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    changed: Manifest = msgspec.structs.replace(
        manifest,
        files={**manifest.files, BANK: entry},
        verification=carry_verification(manifest, mmd, self_term),
    )
    files: dict[str, bytes | Path] = {**bundle.files(), BANK: data}
    calibration = bundle.calibration
    if calibration is not None:
        files[CALIBRATION] = carry_calibration(calibration, mmd, changed.bundle_id).to_bytes()
    return write_bundle(destination, changed, files), calibration is not None


def _as_it_was(
    bundle: Bundle, destination: Path, file: BankFile, before: float, of: int, spread: float | None, why: str
) -> Compressed:
    if destination.resolve() != bundle.path.resolve():
        bundle = write_bundle(destination, bundle.manifest, bundle.files())
    return Compressed(
        bundle,
        file.rows,
        of,
        before,
        spread,
        file.self_term,
        mean_kernel(file.self_term, file.compression, file.rows),
        kept=why,
        calibration=bundle.calibration is not None,
        carried=0,
        dropped=0,
    )


_SUFFIX = "; measured before the bank was compressed, bound of the score change added"


def carry_calibration(calibration: Calibration, mmd: float, bundle_id: str) -> Calibration:
    """The calibration for a bundle whose bank differs by at most mmd."""
    scores = tuple((math.sqrt(max(score, 0.0)) + mmd) ** 2 for score in calibration.scores)
    return msgspec.structs.replace(
        calibration,
        bundle_id=bundle_id,
        scores=scores,
        thresholds=tuple(Threshold(entry.fpr, threshold(scores, entry.fpr)) for entry in calibration.thresholds),
        carried=calibration.carried + mmd,
    )


def carry_verification(manifest: Manifest, mmd: float, self_term: float) -> tuple[Verification, ...]:
    """The records that a changed bank leaves: passes whose score change stays within the limit, with the bound added.

    mmd: the most that MMD changes.  self_term: of the bank they were measured with.
    Rank correlation, flips and false positive rate stay as measured with the former bank, which the reference says: no
    bound is known for them.  Failures are kept as they are.  A pair whose newest record is a pass that cannot be
    carried loses all its records, or an older one would decide.
    """
    newest = {(record.runtime, record.precision): record for record in manifest.verification}
    lost = {
        pair for pair, record in newest.items() if record.passed and _carried(record, manifest, mmd, self_term) is None
    }
    kept = [record for record in manifest.verification if (record.runtime, record.precision) not in lost]
    carried = (_carried(record, manifest, mmd, self_term) if record.passed else record for record in kept)
    return tuple(record for record in carried if record is not None)


def _carried(record: Verification, manifest: Manifest, mmd: float, self_term: float) -> Verification | None:
    """A pass with the bound added; None where that misses the limit."""
    apart = min(math.sqrt(manifest.model.signature) * record.max_signature_error / manifest.model.sigma, math.sqrt(2.0))
    # No image's MMD exceeds |mu_X| + |mu_R| <= 1 + sqrt(C); a spread moves no more than the scores do.
    largest = 1.0 + math.sqrt(max(self_term, 0.0))
    spread = record.score_spread - mmd * (2.0 * largest + mmd)
    if spread <= 0.0:
        return None
    change = (record.max_score_change * record.score_spread + 2.0 * mmd * apart) / spread
    if change > manifest.limits.max_score_change:
        return None
    return msgspec.structs.replace(
        record,
        max_score_change=change,
        score_spread=spread,
        reference=record.reference.removesuffix(_SUFFIX) + _SUFFIX,
    )

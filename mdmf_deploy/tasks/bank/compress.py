"""Compress a bundle's bank, and carry its calibration and verification over without any image.

Compression bounds its error: |MMD(X, R') - MMD(X, R)| <= e for every image X, seen or not.

Calibration: an image of score s now scores at most (sqrt(s) + e)^2. p-values taken among these bounds are at least
those of a new calibration, and keep their guarantee.

Verification: two engines extract X and Y from one image. The bank enters the difference of their scores
only through 2 <mu_X - mu_Y, mu_R>. Compression changes that by at most 2 e |mu_X - mu_Y|, where
|mu_X - mu_Y| <= sqrt(d) max|x - y| / sigma.

The root of an image's score is the root mean square of its crops' MMDs, so both bounds also hold for several crops.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle, check_bank, hint, write_bundle
from mdmf_deploy.bundle.calibration import Calibration, Group, Threshold, VideoGroup
from mdmf_deploy.bundle.conformal import threshold
from mdmf_deploy.bundle.manifest import BANK, CALIBRATION, SCHEMA_VERSION, FileEntry, Manifest, Verification
from mdmf_deploy.errors import BankError, UsageError
from mdmf_deploy.mmd.compress.bank_rows import BankFile
from mdmf_deploy.mmd.compress.fit import CANDIDATES, SAMPLE, Fitted, OutOfReach, compress
from mdmf_deploy.tasks.bank.inspect import bandwidth_warning, mean_kernel
from mdmf_deploy.tasks.verify import newest_scale, scale_in

METHOD = "f/P-greedy"
_SUFFIX = "; measured before the bank was compressed, bound of the score change added"


@dataclass(frozen=True, slots=True)
class Compressed:
    """The result of a compression.

    points, of: signatures now, and before the first compression.
    max_mmd_change: the error bound, against the bank before the first compression.
    spread: standard deviation of MMD over the calibration images, or None without any.
    unchanged: why the bank stays as it is, or "" if it was compressed.
    calibration: whether one was carried over.
    carried, dropped: the number of verification records kept with a bound added, and of those removed.
    """

    bundle: Bundle
    points: int
    of: int
    max_mmd_change: float
    spread: float | None
    self_term: float
    mean_kernel: float | None
    unchanged: str
    calibration: bool
    carried: int
    dropped: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line if the bandwidth makes nearly all kernel values 0 or 1."""
        warning = bandwidth_warning(self.mean_kernel, self.of, self.bundle.manifest.model.sigma)
        return (warning,) if warning else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that name what was carried over, and what to run next."""
        path = self.bundle.path
        if self.unchanged:
            return (f"the bank stays as it is: {self.unchanged}",)
        notes = []
        if self.calibration:
            notes.append(
                "calibration carried over, its scores raised by the error bound; "
                f"{hint('calibrate', path, 'REAL_PHOTOS')} would make it exact"
            )
        verify = hint("verify", path, "--runtime", "all")
        if self.carried:
            notes.append(
                f"{self.carried} verification records carried over, their score change raised by the error bound; "
                f"rank, flips and rate not measured again: {verify} does"
            )
        if self.dropped:
            notes.append(f"{self.dropped} verification records no longer hold")
        return tuple(notes)

    @property
    def facts(self) -> dict[str, object]:
        """Name -> value, for a table or JSON."""
        in_spreads = self.max_mmd_change / self.spread if self.spread else None
        return {
            "bundle": str(self.bundle.path),
            "bundle_id": self.bundle.bundle_id,
            "calibration_id": self.bundle.calibration_id,
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
    """Write the bundle with a bank of at most `points` signatures, or of as few as keep within max_error.

    max_error: the most that any image's MMD may change, in standard deviations of MMD over the calibration images.
    The bank is read block by block. The calibration is carried over, and verification records as far as the error bound
    allows. The other records have to be measured again.
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
    old = _Old(bundle, BankFile(bundle.path / BANK), mmd_spread(bundle))
    file = old.file
    if points is not None and points >= file.rows:
        return _copy(old, destination, f"it has {file.rows} signatures, no more than asked for")
    allowed = None if max_error is None else _allowed(old, max_error)
    try:
        fitted = compress(file, file.sigma, file.self_term, points=points, max_mmd=allowed, candidates=candidates)
    except OutOfReach as error:
        if old.spread is None or max_error is None:
            raise
        # More candidates help only where the option is what limited their number.
        more = error.candidates == candidates < min(file.rows, SAMPLE)
        reached = (old.change + error.mmd) / old.spread
        raise BankError(
            f"{bundle.path}: {error.points} of {file.rows} signatures reach {reached:.3g} spreads of MMD, "
            f"not {max_error:g}; give {'more --candidates' if more else 'a larger --max-error'}"
        ) from error
    if len(fitted.weights) >= file.rows:
        return _copy(old, destination, f"fewer than its {file.rows} signatures cannot keep the change so small")
    return _write(old, destination, fitted)


def mmd_spread(bundle: Bundle) -> float | None:
    """Return the standard deviation of MMD, not squared, over the calibration images, or None without a calibration."""
    calibration = bundle.calibration
    if calibration is None or not calibration.scores:
        return None
    return float(np.std(np.sqrt(np.maximum(calibration.scores, 0.0))))


@dataclass(frozen=True, slots=True)
class _Old:
    """The bundle to compress, its bank's file, and the spread of MMD over its calibration images."""

    bundle: Bundle
    file: BankFile
    spread: float | None

    @property
    def change(self) -> float:
        """The error bound of earlier compressions."""
        return float(self.file.compression.get("max_mmd_change", 0.0))

    @property
    def of(self) -> int:
        return int(self.file.compression.get("of", self.file.rows))

    @property
    def mean_kernel(self) -> float | None:
        return mean_kernel(self.file.self_term, self.file.compression, self.file.rows)


def _allowed(old: _Old, max_error: float) -> float:
    """Return how much of max_error is left for this compression, in MMD."""
    path = old.bundle.path
    if old.spread is None:
        raise BankError(
            f"{path}: --max-error is measured by the spread of calibration scores, and there is no calibration; "
            f"run {hint('calibrate', path, 'REAL_PHOTOS')} first, or give --points"
        )
    if old.spread == 0.0:
        raise BankError(f"{path}: all calibration images score the same, so there is no spread; give --points")
    allowed = max_error * old.spread - old.change
    if allowed <= 0.0:
        raise BankError(
            f"{path}: its bank is compressed already, to within {old.change / old.spread:.3g} spreads of MMD if at "
            "all; start from the bank it was made of, or give a larger --max-error"
        )
    return allowed


def _copy(old: _Old, destination: Path, why: str) -> Compressed:
    """Write the bundle with its bank unchanged."""
    bundle = old.bundle
    if destination.resolve() != bundle.path.resolve():
        bundle = write_bundle(destination, bundle.manifest, bundle.files())
    return Compressed(
        bundle,
        points=old.file.rows,
        of=old.of,
        max_mmd_change=old.change,
        spread=old.spread,
        self_term=old.file.self_term,
        mean_kernel=old.mean_kernel,
        unchanged=why,
        calibration=bundle.calibration is not None,
        carried=0,
        dropped=0,
    )


def _write(old: _Old, destination: Path, fitted: Fitted) -> Compressed:
    """Write the bundle with the compressed bank, and with the calibration and the records that carry over."""
    bank = _bank(old, fitted)
    check_bank(bank, old.bundle.manifest, BANK)
    data = bank.to_bytes()
    before = old.bundle.manifest
    records = carry_verification(before, fitted.mmd, old.file.self_term)
    entry = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    manifest = msgspec.structs.replace(
        before,
        # The calibration is carried over in this schema.
        schema_version=SCHEMA_VERSION if old.bundle.calibration is None else old.bundle.calibration.schema,
        files={**before.files, BANK: entry},
        verification=records,
    )
    files: dict[str, bytes | Path] = {**old.bundle.files(), BANK: data}
    calibration = old.bundle.calibration
    if calibration is not None:
        files[CALIBRATION] = carry_calibration(calibration, fitted.mmd, manifest.bundle_id).to_bytes()
    return Compressed(
        write_bundle(destination, manifest, files),
        points=len(bank.weights),
        of=old.of,
        max_mmd_change=old.change + fitted.mmd,
        spread=old.spread,
        self_term=bank.self_term,
        mean_kernel=old.mean_kernel,
        unchanged="",
        calibration=calibration is not None,
        carried=sum(record.passed for record in records),
        dropped=len(before.verification) - len(records),
    )


def _bank(old: _Old, fitted: Fitted) -> Bank:
    file = old.file
    compression: dict[str, object] = {
        "method": METHOD,
        "of": old.of,
        "max_mmd_change": old.change + fitted.mmd,
        "spread": old.spread,
    }
    scale = newest_scale(old.bundle.manifest.verification) or file.compression.get("scale")
    if scale is None:
        # A bank that was never verified. Its images can be scored now, but not once it is compressed.
        with contextlib.suppress(BankError):
            scale = scale_in(old.bundle)
    if scale is not None:
        compression["scale"] = list(scale)
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


def carry_calibration(calibration: Calibration, mmd: float, bundle_id: str) -> Calibration:
    """Return the calibration for a bundle whose bank changes no image's MMD by more than mmd."""
    return msgspec.structs.replace(
        calibration,
        bundle_id=bundle_id,
        groups=tuple(_raised(group, mmd) for group in calibration.groups),
        carried=calibration.carried + mmd,
        videos=None if calibration.videos is None else _raised_videos(calibration.videos, mmd),
    )


def _raised_videos(videos: VideoGroup, mmd: float) -> VideoGroup:
    # A video's score is a mean of squared MMD. Its root changes by no more than theirs (Minkowski's inequality).
    raised = _raised(videos.group, mmd)
    return msgspec.structs.replace(
        videos, scores=raised.scores, thresholds=raised.thresholds, carried=videos.carried + mmd
    )


def _raised(group: Group, mmd: float) -> Group:
    # The bound grows with the score, so images keep their order.
    scores = tuple((math.sqrt(max(score, 0.0)) + mmd) ** 2 for score in group.scores)
    thresholds = tuple(Threshold(entry.fpr, threshold(scores, entry.fpr)) for entry in group.thresholds)
    return msgspec.structs.replace(group, scores=scores, thresholds=thresholds)


def carry_verification(manifest: Manifest, mmd: float, self_term: float) -> tuple[Verification, ...]:
    """Return the records that survive a change of bank, with the bound added to the score change of each pass.

    mmd: the most that MMD changes.
    self_term: that of the bank they were measured with.
    A pass survives if its score change stays within the limit. Its rank correlation, flips and false positive rate stay
    as measured with the former bank, because no bound is known for them. The reference says so. Failures are kept as
    they are. A pair whose newest record is a pass that does not survive loses all its records, or an older record would
    decide.
    """
    newest = {(record.runtime, record.precision): record for record in manifest.verification}
    lost = {
        pair for pair, record in newest.items() if record.passed and _carried(record, manifest, mmd, self_term) is None
    }
    kept = [record for record in manifest.verification if (record.runtime, record.precision) not in lost]
    carried = (_carried(record, manifest, mmd, self_term) if record.passed else record for record in kept)
    return tuple(record for record in carried if record is not None)


def _carried(record: Verification, manifest: Manifest, mmd: float, self_term: float) -> Verification | None:
    """Return a pass with the bound added, or None if that misses the limit."""
    apart = min(math.sqrt(manifest.model.signature) * record.max_signature_error / manifest.model.sigma, math.sqrt(2.0))
    # No image's MMD exceeds |mu_X| + |mu_R| <= 1 + sqrt(C). A spread moves no more than the scores do.
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

"""Inspect a reference bank: does its bandwidth fit, and does every image in it look real to the others?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath

import msgspec
import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.mmd.cpu import leave_one_out

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
# Iglewicz and Hoaglin (1993): a modified z-score beyond 3.5 is an outlier.
OUTLIER_Z = 3.5


class Outlier(msgspec.Struct, frozen=True):
    """An image that the rest of the bank scores far higher than the other images, as if it were generated.

    z: 0.6745 (score - median) / MAD.
    """

    uri: str
    sha256: str
    score: float
    z: float


class BankAudit(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an inspection.

    mean_kernel: see the function of that name.
    folders: folder -> number of images from it.
    quantiles: those of the leave-one-image-out scores, by QUANTILES. Empty if there are no scores, and then a warning
        says why.
    outliers: worst first.
    """

    signatures: int
    width: int
    images: int
    sigma: float
    self_term: float
    compression: dict[str, object]
    folders: dict[str, int]
    mean_kernel: float | None
    quantiles: dict[str, float]
    outliers: tuple[Outlier, ...]
    warnings: tuple[str, ...]


def audit_bank(bank: Bank) -> BankAudit:
    """Inspect a bank. Takes one pass over it per image, unless it is compressed."""
    m, width = bank.signatures.shape
    warnings: list[str] = []
    compressed = bank.compression.get("method") != "none"
    mean = mean_kernel(bank.self_term, bank.compression, m)
    warning = bandwidth_warning(mean, int(str(bank.compression.get("of", m))), bank.sigma)
    if warning is not None:
        warnings.append(warning)
    scores = np.empty(0)
    if compressed:
        warnings.append("no leave-one-image-out scores: a compressed bank's points stand for all its images at once")
    elif len(bank.sources) < 2:
        warnings.append("no leave-one-image-out scores: the bank holds a single image")
    else:
        scores = leave_one_out(bank)
    return BankAudit(
        signatures=m,
        width=width,
        images=len(bank.sources),
        sigma=bank.sigma,
        self_term=bank.self_term,
        compression=dict(bank.compression),
        folders=dict(sorted(Counter(str(PurePosixPath(source.uri).parent) for source in bank.sources).items())),
        mean_kernel=mean,
        quantiles={f"{q:g}": float(np.quantile(scores, q)) for q in QUANTILES} if len(scores) else {},
        outliers=_outliers(bank, scores),
        warnings=tuple(warnings),
    )


def mean_kernel(self_term: float, compression: Mapping[str, object], m: int) -> float | None:
    """Return the mean of k(r_j, r_j') over j != j', of a bank of m signatures or of the bank compressed to it.

    None for a single signature. After several compressions it is an estimate, a little too high.
    """
    of = int(str(compression.get("of", m)))
    # By least squares |mu_R|^2 = |mu_R'|^2 + MMD(R, R')^2. With equal weights |mu_R|^2 is the mean over all pairs.
    whole = self_term + float(str(compression.get("max_mmd_change", 0.0))) ** 2
    return max((whole * of - 1.0) / (of - 1.0), 0.0) if of > 1 else None


def bandwidth_warning(mean_kernel: float | None, m: int, sigma: float) -> str | None:
    """Return a line on a bandwidth at which a bank of m signatures says little, or None.

    It is too small if the mean kernel value is below 0.01. It is worse if a point's neighbours together weigh less than
    the point itself. It is too large if the mean kernel value is above 0.99.
    """
    if mean_kernel is None:
        return None
    if mean_kernel > 0.99:
        return (
            f"bandwidth {sigma:g} is too large for this bank: its kernel values are nearly all 1 "
            f"(mean {mean_kernel:.4f}), so scores hardly tell images apart"
        )
    if mean_kernel < 0.01:
        alone = mean_kernel * (m - 1) < 1.0
        so = (
            "scores hardly tell images apart, and no signature can stand for another"
            if alone
            else "scores follow how alike an image's own patches are, and hardly the bank"
        )
        return (
            f"bandwidth {sigma:g} is too small for this bank: its kernel values are nearly all 0 "
            f"(mean {mean_kernel:.2g}), so {so}"
        )
    return None


def _outliers(bank: Bank, scores: NDArray[np.float64]) -> tuple[Outlier, ...]:
    if not len(scores):
        return ()
    centre = np.median(scores)
    spread = np.median(np.abs(scores - centre))
    # Half of the images or more have the same score, so there is no scale to judge by.
    if spread == 0.0:
        return ()
    z = 0.6745 * (scores - centre) / spread
    worst = sorted(np.flatnonzero(z > OUTLIER_Z), key=lambda image: -z[image])
    return tuple(
        Outlier(bank.sources[image].uri, bank.sources[image].sha256, float(scores[image]), float(z[image]))
        for image in worst
    )

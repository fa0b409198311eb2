"""Looking into a reference bank: does its bandwidth fit, and does every image in it look real to the others?"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

import msgspec
import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bank import Bank
from mdmf_deploy.mmd.leave_one_out import leave_one_out
from mdmf_deploy.mmd.reference import bank_self_term

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
# Iglewicz and Hoaglin (1993): a modified z-score beyond 3.5 is an outlier.
OUTLIER_Z = 3.5


class Outlier(msgspec.Struct, frozen=True):
    """An image of the bank that the rest of it would call generated sooner than its fellows.

    z: 0.6745 (score - median) / MAD.
    """

    uri: str
    sha256: str
    score: float
    z: float


class BankAudit(msgspec.Struct, frozen=True, kw_only=True):
    """mean_kernel: mean of k(r_j, r_j') over j != j'; None for a single signature.

    folders: folder -> images from it.  quantiles: of the leave-one-image-out scores, by QUANTILES; empty where there
    are none, for the reason in warnings.  outliers: worst first.
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
    """Look into a bank; O(M^2 d) time, once."""
    m, width = bank.signatures.shape
    warnings: list[str] = []
    compressed = bank.compression.get("method") != "none"
    # With equal weights the cached bank term is the mean over all pairs already.
    mean = bank_self_term(bank.signatures, np.full(m, 1.0 / m), bank.sigma) if compressed else bank.self_term
    mean_kernel = (mean * m - 1.0) / (m - 1.0) if m > 1 else None
    if mean_kernel is not None and not 0.01 <= mean_kernel <= 0.99:
        extreme, remedy = ("0", "small") if mean_kernel < 0.5 else ("1", "large")
        warnings.append(
            f"bandwidth {bank.sigma:g} is too {remedy} for this bank: its kernel values are nearly all {extreme} "
            f"(mean {mean_kernel:.4f}), so scores hardly tell images apart"
        )
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
        mean_kernel=mean_kernel,
        quantiles={f"{q:g}": float(np.quantile(scores, q)) for q in QUANTILES} if len(scores) else {},
        outliers=_outliers(bank, scores),
        warnings=tuple(warnings),
    )


def _outliers(bank: Bank, scores: NDArray[np.float64]) -> tuple[Outlier, ...]:
    if not len(scores):
        return ()
    centre = np.median(scores)
    spread = np.median(np.abs(scores - centre))
    # Half the images or more with one and the same score: there is no scale to judge by.
    if spread == 0.0:
        return ()
    z = 0.6745 * (scores - centre) / spread
    worst = sorted(np.flatnonzero(z > OUTLIER_Z), key=lambda image: -z[image])
    return tuple(
        Outlier(bank.sources[image].uri, bank.sources[image].sha256, float(scores[image]), float(z[image]))
        for image in worst
    )

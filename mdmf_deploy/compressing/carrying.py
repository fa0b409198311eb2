"""What a bank changed by at most e in MMD leaves of a calibration and of verification records, without any image.

|MMD'(X) - MMD(X)| <= e for every image, so (sqrt(s) + e)^2 is at least what an image of score s scores now: p-values
taken among such bounds are at least those of a new calibration, and keep their guarantee.

Two engines sign one image as X and Y. Of the difference of their scores the bank only sees 2 <mu_X - mu_Y, mu_R>, so it
changes by at most 2 e |mu_X - mu_Y|, and |mu_X - mu_Y| <= sqrt(d) max|x - y| / sigma.
"""

from __future__ import annotations

import math

import msgspec

from mdmf_deploy.bundle import conformal
from mdmf_deploy.bundle.calibration import Calibration, Threshold
from mdmf_deploy.bundle.manifest import Manifest, Verification

_SUFFIX = "; measured before the bank was compressed, bound of the score change added"


def carry_calibration(calibration: Calibration, mmd: float, bundle_id: str) -> Calibration:
    """The calibration for a bundle whose bank differs by at most mmd."""
    scores = tuple((math.sqrt(max(score, 0.0)) + mmd) ** 2 for score in calibration.scores)
    return msgspec.structs.replace(
        calibration,
        bundle_id=bundle_id,
        scores=scores,
        thresholds=tuple(
            Threshold(entry.fpr, conformal.threshold(scores, entry.fpr)) for entry in calibration.thresholds
        ),
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

"""The written reduction, run in ONNX Runtime and held to ours before anyone relies on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.errors import GateFailed
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.triton_repository.reduction import CONTRIBUTIONS, SIGNATURES

# Of the sum of all weights' sizes, which no share of a score exceeds: a float32 has 6e-8.
_ROUNDING = 1e-6
_IMAGES = 4


def check_reduction(graph: Path, bank: Bank, patches: int) -> float:
    """Score a few images made of the bank's own signatures both ways; the largest change of a patch's share.

    Raises GateFailed if that is more than rounding.
    """
    import onnxruntime

    signatures = np.resize(bank.signatures, (_IMAGES * patches, bank.signatures.shape[1]))
    # Half of them lie between two points, where kernel values are neither 0 nor 1.
    signatures[::2] = (signatures[::2] + np.roll(signatures, 1, axis=0)[::2]) / 2
    images = signatures.reshape(_IMAGES, patches, -1)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (shares,) = session.run([CONTRIBUTIONS], {SIGNATURES: images})
    change = float(np.abs(shares - CpuReduction()(images, bank).contributions).max())
    allowed = _ROUNDING * (1.0 + 2.0 * float(np.abs(bank.weights).sum()) + abs(bank.self_term))
    # Written so that a NaN is never good.
    if not change <= allowed:
        raise GateFailed(
            f"Triton repository: not written, its reduction gives scores that differ by {change:.3g} from ours in "
            f"onnxruntime {onnxruntime.__version__} (at most {allowed:.1g} is rounding); try another version"
        )
    return change

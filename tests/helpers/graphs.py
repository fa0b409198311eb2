"""ONNX graphs, run by ONNX Runtime without a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from mdmf_deploy.bundle.manifest import INPUT
from mdmf_deploy.hardware.host import saturates_int8


def exact_int8() -> onnxruntime.SessionOptions:
    """Return options with which int8 sums are exact on this processor, too."""
    options = onnxruntime.SessionOptions()
    if saturates_int8():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def extract(path: Path, images: np.ndarray) -> np.ndarray:
    """Return the signatures (B, N, d) of images (B, 3, S, S)."""
    (signatures,) = onnxruntime.InferenceSession(path, exact_int8()).run(None, {INPUT: images})
    return signatures

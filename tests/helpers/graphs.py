"""ONNX graphs, run by ONNX Runtime without a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from mdmf_deploy.bundle.manifest import INPUT


def extract(path: Path, images: np.ndarray) -> np.ndarray:
    """Return the signatures (B, N, d) of images (B, 3, S, S)."""
    (signatures,) = onnxruntime.InferenceSession(path).run(None, {INPUT: images})
    return signatures

"""The tiny bundle's graph, quantised, and any of its layers restorable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from mdmf_deploy.bundle.manifest import MODEL
from mdmf_deploy.tasks.export.restore import Restorable


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 3, 56, 56)).astype(np.float32)


@pytest.fixture(scope="session")
def restorable(
    tiny_bundle: Path, tiny_quantised: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> Restorable:
    return Restorable(tiny_bundle / MODEL, tiny_quantised, tmp_path_factory.mktemp("variants"))

"""Images, and what ONNX Runtime makes of them, for engines on pretended GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.handmade import make_bundle

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.runtime.ort import OrtEngine


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose graph is one convolution, for what does not depend on the graph. It takes the same images."""
    return make_bundle(tmp_path_factory.mktemp("small") / "small.mdmf").path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((9, 3, 56, 56)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, images: np.ndarray) -> np.ndarray:
    return OrtEngine(Bundle.open(tiny_bundle))(images)

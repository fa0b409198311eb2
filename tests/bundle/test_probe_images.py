"""Probe images are the same everywhere, and their signatures survive the file."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mdmf_deploy.bundle.probe_images import COUNT, probe_crops, probes_from_bytes, probes_to_bytes
from mdmf_deploy.errors import BundleError


def test_the_same_pixels_on_every_machine() -> None:
    crops = probe_crops(56)
    assert crops.shape == (COUNT, 56, 56, 3)
    assert crops.dtype == np.uint8
    # Pinned, because bundles hold the signatures of exactly these pixels.
    assert hashlib.sha256(crops.tobytes()).hexdigest()[:16] == "a15e6efc7640ad14"
    assert hashlib.sha256(probe_crops(224).tobytes()).hexdigest()[:16] == "7ef07a1f3f2737d8"


def test_probes_differ_from_each_other_and_range_from_smooth_to_textured() -> None:
    crops = probe_crops(224).astype(float)
    means, deviations = crops.mean((1, 2, 3)), crops.std((1, 2, 3))
    assert np.ptp(means) > 40
    assert deviations.min() > 10
    roughness = np.abs(np.diff(crops, axis=2)).mean((1, 2, 3))
    assert roughness.max() > 4 * roughness.min()
    assert (crops.reshape(COUNT, -1) == 255).mean() < 0.2


def test_signatures_survive_the_file() -> None:
    crops = probe_crops(28)
    signatures = np.random.default_rng(0).standard_normal((COUNT, 4, 8)).astype(np.float32)
    data = probes_to_bytes(signatures, crops)
    np.testing.assert_array_equal(probes_from_bytes(data, crops, "p"), signatures)
    assert data == probes_to_bytes(signatures, crops)


def test_other_probes_and_damaged_files_are_named() -> None:
    crops = probe_crops(28)
    data = probes_to_bytes(np.zeros((COUNT, 4, 8), np.float32), crops)
    changed = crops.copy()
    changed[3, 2, 1, 0] ^= 1
    with pytest.raises(BundleError, match=r"p\.safetensors: made of other probe images"):
        probes_from_bytes(data, changed, "p.safetensors")
    with pytest.raises(BundleError, match=r"p\.safetensors does not hold"):
        probes_from_bytes(data[:50], crops, "p.safetensors")

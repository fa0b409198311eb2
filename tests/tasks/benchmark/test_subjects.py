"""Bundles lowered for the benchmark have another graph, the same bank and no verification."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers.handmade import manifest

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.benchmark.subjects import lowered


def test_lowering_to_its_own_precision_returns_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert lowered(bundle, "fp32", [], tmp_path) is bundle
    assert list(tmp_path.iterdir()) == []


def test_a_lowered_bundle_is_complete_and_has_the_same_bank(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    half = Bundle.open(lowered(bundle, "fp16", [], tmp_path).path)
    assert half.manifest.model.precision == "fp16"
    assert half.bundle_id != bundle.bundle_id
    assert half.manifest.verification == ()
    assert half.calibration is None
    assert np.array_equal(half.bank.signatures, bundle.bank.signatures)
    paths = sorted(photos.iterdir())
    with Detector(tiny_bundle, "onnxruntime") as before, Detector(half.path, "onnxruntime") as after:
        scores = [[row.score for row in detector.detect(paths)] for detector in (before, after)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert scores[0] != scores[1]


def test_a_bundle_is_never_raised_to_a_higher_precision(tmp_path: Path) -> None:
    card = msgspec.structs.replace(manifest().model, precision="int8")
    bundle = Bundle(Path("mine.mdmf"), manifest(model=card))
    with pytest.raises(UsageError, match=r"mine.mdmf is int8.*only an fp32 graph can be lowered.*--precision fp32"):
        lowered(bundle, "fp32", [], tmp_path)
    with pytest.raises(UsageError, match="int4: not known; choose from fp32, fp16, int8"):
        lowered(bundle, "int4", [], tmp_path)

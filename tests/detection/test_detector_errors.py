"""Detector: errors at its creation, and the examples in its docstrings."""

from __future__ import annotations

import doctest
import shutil
from pathlib import Path

import pytest
from helpers.small_graphs import with_note

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.detection import detector as detector_module
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.errors import BundleError, MdmfError, RuntimeUnavailable, UsageError


def test_errors_name_a_runtime_bundle_or_option_that_is_wrong(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="'quantum' is not known"):
        Detector(tiny_bundle, runtime="quantum")
    with pytest.raises(BundleError, match="not a folder"):
        Detector(tmp_path / "nowhere.mdmf")
    with Detector(tiny_bundle, batch_size=0) as detector, pytest.raises(UsageError, match="batch_size must be"):
        detector.detect([])


def test_a_bank_of_another_model_is_refused(bundle_copy: Path) -> None:
    opened = Bundle.open(bundle_copy)
    files = {**opened.files(), "model.onnx": with_note(opened.model_path.read_bytes())}
    write_bundle(bundle_copy, opened.manifest, files)
    with pytest.raises(MdmfError, match="come from another model"):
        Detector(bundle_copy)


def test_the_examples_in_the_docstrings_run(
    tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdmf_deploy.bundle.bundle.shipped", lambda name: tiny_bundle)
    shutil.copy(photos / "photo00.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(detector_module)
    assert results.attempted >= 8
    assert results.failed == 0

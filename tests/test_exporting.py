from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from mdmf_deploy.bundle import BANK, MODEL, PROBES, Bundle


def test_a_bundle_is_whole_and_verified(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert set(bundle.manifest.files) == {MODEL, BANK, PROBES}
    (gate,) = bundle.manifest.verification
    assert gate.passed
    assert 0 < gate.max_signature_error < 1e-4
    onnx.checker.check_model(bundle.model_path, full_check=True)

"""`mdmf doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.mdmf import mdmf

from mdmf_deploy import runtime
from mdmf_deploy.bundle import bundle


def test_runtimes_and_versions_are_listed() -> None:
    import onnxruntime

    result = mdmf("doctor", "--json")
    printed = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {"name": "onnxruntime", "version": onnxruntime.__version__, "missing": None, "enable": None} in printed[
        "runtimes"
    ]
    openvino = next(runtime for runtime in printed["runtimes"] if runtime["name"] == "openvino")
    assert openvino["enable"] == (openvino["missing"] and "pip install 'mdmf-deploy[openvino]'")
    assert "-" not in (openvino["version"] or "")
    assert {"cpu", "export", "gpu", "openvino", "scale"} <= {extra["name"] for extra in printed["extras"]}
    assert printed["machine"]["cores"] >= 1
    assert f"ready {onnxruntime.__version__}" in mdmf("doctor").stdout


def test_exits_with_1_and_an_install_hint_if_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ENGINES", {"imaginary": ("mdmf_deploy.runtime.imaginary", "X", "openvino")})
    result = mdmf("doctor")
    assert result.exit_code == 1
    assert "no: No module named 'mdmf_deploy.runtime.imaginary'" in result.stdout
    assert "pip install 'mdmf-deploy[openvino]'" in result.stdout


def test_the_shipped_bundles_are_checked(tiny_bundle: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "shipped", lambda name: tiny_bundle)
    found = json.loads(mdmf("doctor", "--json").stdout)["bundles"]
    facts = {"bundle_id": bundle.Bundle.open(tiny_bundle).bundle_id, "calibrated": False, "problem": None}
    assert found == [{"name": name, **facts} for name in ("dinov2s", "starter")]
    (bundle_copy / "bank.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(bundle, "shipped", lambda name: bundle_copy)
    result = mdmf("doctor")
    assert result.exit_code == 0
    assert "bank.safetensors: hash" in result.stdout

"""`mdmf doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mdmf_deploy import runtime
from mdmf_deploy.bundle import bundle
from mdmf_deploy.cli import app


def test_says_what_runs_and_with_which_versions() -> None:
    import onnxruntime

    result = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {"name": "onnxruntime", "version": onnxruntime.__version__, "missing": None, "enable": None} in told[
        "runtimes"
    ]
    openvino = next(runtime for runtime in told["runtimes"] if runtime["name"] == "openvino")
    assert openvino["enable"] == (openvino["missing"] and "pip install 'mdmf-deploy[openvino]'")
    assert "-" not in (openvino["version"] or "")
    assert {"cpu", "export", "gpu", "openvino", "scale"} <= {extra["name"] for extra in told["extras"]}
    assert told["machine"]["cores"] >= 1
    assert f"ready {onnxruntime.__version__}" in CliRunner().invoke(app, ["doctor"]).stdout


def test_exits_with_1_and_says_how_to_go_on_if_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ENGINES", {"imaginary": ("mdmf_deploy.runtime.imaginary", "X", "openvino")})
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "no: No module named 'mdmf_deploy.runtime.imaginary'" in result.stdout
    assert "pip install 'mdmf-deploy[openvino]'" in result.stdout


def test_looks_into_the_starter(tiny_bundle: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "shipped", lambda name: tiny_bundle)
    told = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["starter"]
    assert told == {"bundle_id": bundle.Bundle.open(tiny_bundle).bundle_id, "calibrated": False, "problem": None}
    (bundle_copy / "bank.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(bundle, "shipped", lambda name: bundle_copy)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "bank.safetensors: hash" in result.stdout

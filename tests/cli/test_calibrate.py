"""`mdmf calibrate`, on a real if tiny model."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from helpers.mdmf import mdmf
from PIL import Image

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.recipe import GateLimits


def test_thresholds_are_written_and_shown(bundle_copy: Path, photos: Path) -> None:
    before = Bundle.open(bundle_copy)
    result = mdmf("calibrate", bundle_copy, photos, "--fpr", 0.1, "--fpr", 0.3, "--force", "--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    after = Bundle.open(bundle_copy)
    assert after.bundle_id == printed["bundle_id"] == before.bundle_id
    assert printed["images"] == len(after.calibration.scores) == 12
    small, *larger = printed["groups"]
    assert [(group["size_group"], group["images"]) for group in larger] == [
        *(("0.5 to 2 MP", 0), ("2 to 8 MP", 0), ("above 8 MP", 0))
    ]
    assert (small["size_group"], small["images"]) == ("up to 0.5 MP", 12)
    assert [entry["fpr"] for entry in small["thresholds"]] == [0.1, 0.3]
    # With 12 images, one of 13 places is 0.077: the largest score is the threshold at 0.1.
    assert small["thresholds"][0]["threshold"] == after.calibration.scores[-1]
    assert small["thresholds"][0]["interval"] == pytest.approx([1 - 0.975 ** (1 / 12), 1 - 0.025 ** (1 / 12)])
    assert printed["review"] == 0.5
    assert printed["holds_for"] == [{"runtime": "onnxruntime", "precision": "fp32"}]
    assert 0.25 <= printed["least_evidence"] == after.calibration.least_evidence < 1
    assert [larger[0]["thresholds"][n]["images_missing"] for n in (0, 1)] == [9, 3]
    assert "0.5 to 2 MP, 2 to 8 MP, above 8 MP" in printed["warnings"][0]
    judged = after.calibration.judge(after.calibration.scores[-1] + 1, 1.0, 10_000, "onnxruntime", "fp32")
    assert judged.verdict == "generated"


def test_the_table_has_a_line_a_size(bundle_copy: Path, photos: Path) -> None:
    result = mdmf("calibrate", bundle_copy, photos, "--fpr", 0.1, "--size-bound", 0.01, "--size-bound", 3, "--force")
    assert re.search(r"up to 0.01 MP +[1-9] +0.1 +\S+ +\S+", result.stdout)
    assert re.search(r"0.01 to 3 MP +[1-9] +0.1 +\S+ +\S+", result.stdout)
    assert re.search(r"above 3 MP +0 +0.1 +none +uncertain; needs 9 more images", result.stdout)
    whole = mdmf("calibrate", bundle_copy, photos, "--fpr", 0.1, "--size-bound", "inf", "--force")
    assert re.search(r"all sizes +12 +0.1 +0\.\d+ +0.\d+ to 0.\d+", whole.stdout)
    assert "warning" not in whole.stderr


def test_too_few_images_for_any_verdict_write_nothing_unless_forced(
    tiny_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    six, target = sorted(photos.iterdir())[:6], tmp_path / "new.mdmf"
    result = mdmf("calibrate", tiny_bundle, *six, "--fpr", 0.01, "-o", target)
    assert (result.exit_code, result.stdout, target.exists()) == (2, "", False)
    assert result.stderr.splitlines()[-1] == (
        "mdmf: 6 calibration images are too few for a false positive rate of 0.01: each size needs 99, and the fullest "
        "group (up to 0.5 MP) has 6; give more images or a larger --fpr, or --force to write it all the same"
    )
    forced = mdmf("calibrate", tiny_bundle, *six, "--fpr", 0.01, "-o", target, "--force")
    assert forced.exit_code == 0
    assert "warning: no image can be called real or generated: 6 calibration images are too few" in forced.stderr
    assert "needs 93 more images" in forced.stdout
    rows = mdmf("detect", photos, "--bundle", target, "--json").stdout.splitlines()
    assert {(row["verdict"], row["threshold"]) for row in map(json.loads, rows)} == {("uncertain", None)}
    gated = mdmf("detect", photos, "--bundle", target, "--fail-on", "generated")
    assert (gated.exit_code, gated.stdout) == (2, "")


def test_one_group_of_all_sizes_is_advised_where_that_would_do(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    options = ("--fpr", 0.1, *("--size-bound", 0.008, "--size-bound", 0.01), "-o", tmp_path / "new.mdmf")
    result = mdmf("calibrate", tiny_bundle, photos, *options)
    assert result.exit_code == 2
    assert "12 calibration images are too few" in result.stderr
    assert "or --size-bound inf for one group of all sizes, or --force" in result.stderr


def test_force_does_not_replace_thresholds_that_decide_by_some_that_do_not(bundle_copy: Path, photos: Path) -> None:
    assert mdmf("calibrate", bundle_copy, photos, "--fpr", 0.2, "--force").exit_code == 0
    before = (bundle_copy / "calibration.json").read_bytes()
    result = mdmf("calibrate", bundle_copy, photos, "--force")
    assert result.exit_code == 2
    assert f"and {bundle_copy} has thresholds that decide; give more images" in result.stderr
    assert (bundle_copy / "calibration.json").read_bytes() == before
    assert mdmf("calibrate", bundle_copy, photos, "--fpr", 0.1, "--force").exit_code == 0


def test_no_bundle_is_replaced_without_force(bundle_copy: Path, photos: Path, tmp_path: Path) -> None:
    before = (bundle_copy / "manifest.json").read_bytes()
    for command in (("calibrate",), ("bank", "build")):
        for target in ((), ("-o", bundle_copy)):
            result = mdmf(*command, bundle_copy, photos, *target)
            assert (result.exit_code, result.stdout) == (2, "")
            assert result.stderr == (
                f"mdmf: {bundle_copy} exists; give -o to write a new bundle, or --force to replace this one\n"
            )
    (tmp_path / "notes").mkdir()
    # Refused before any work: the image is not even looked for.
    other = mdmf("calibrate", bundle_copy, tmp_path / "nowhere.jpg", "-o", tmp_path / "notes", "--force")
    assert (other.exit_code, "is not a bundle" in other.stderr) == (2, True)
    assert (bundle_copy / "manifest.json").read_bytes() == before


def test_the_last_line_says_what_was_written_and_what_comes_next(bundle_copy: Path, photos: Path) -> None:
    target = bundle_copy.with_name("my own.mdmf")
    result = mdmf("calibrate", bundle_copy, photos, "--fpr", 0.2, "-o", target, "--json")
    assert result.stderr.splitlines()[-1] == (
        f"mdmf: wrote the calibration of 12 images to {target}; next: mdmf detect photos/ --bundle '{target}'"
    )
    calibration = (target / "calibration.json").read_bytes()
    assert json.loads(result.stdout)["calibration_id"] == hashlib.sha256(calibration).hexdigest()
    assert hashlib.sha256(calibration).hexdigest() in mdmf("inspect", target).stdout


def test_images_left_out_are_reported(bundle_copy: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "held-out"
    shutil.copytree(photos, folder)
    shutil.copy(folder / "photo00.jpg", folder / "copy.jpg")
    Image.new("RGB", (90, 90), "navy").save(folder / "blank.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert mdmf("bank", "build", bundle_copy, *photos.glob("*.png"), "--force").exit_code == 0
    result = mdmf("calibrate", bundle_copy, folder, "--fpr", 0.2, "--runtime", "onnxruntime", "--force")
    assert result.exit_code == 3
    assert result.stdout.startswith(
        "6 images; left out: 6 in the bank, 1 without texture, 1 duplicates, 1 unreadable, 0 other files"
    )
    assert "in the bank, left out" in result.stderr
    assert "broken.png" in result.stderr
    assert "no texture, left out: " in result.stderr


def test_the_banks_own_images_do_not_calibrate_it(bundle_copy: Path, photos: Path) -> None:
    assert mdmf("bank", "build", bundle_copy, photos, "--force").exit_code == 0
    result = mdmf("calibrate", bundle_copy, photos, "--runtime", "onnxruntime", "--force")
    assert result.exit_code == 2
    assert "no image is left to calibrate on (12 are in the bank, 0 have no texture, 0 unreadable)" in result.stderr
    assert Bundle.open(bundle_copy).calibration is None


def test_a_runtime_is_verified_first(bundle_copy: Path, photos: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    write_bundle(bundle.path, msgspec.structs.replace(bundle.manifest, verification=()), bundle.files())
    asked = ("calibrate", bundle_copy, photos, "--fpr", 0.2, "--runtime", "onnxruntime", "-o", tmp_path / "new.mdmf")
    result = mdmf(*asked)
    assert result.exit_code == 0
    assert "mdmf: verifying onnxruntime fp32" in result.stderr
    new = Bundle.open(tmp_path / "new.mdmf")
    assert (new.covered, len(new.manifest.verification)) == ((("onnxruntime", "fp32"),), 1)
    assert Bundle.open(bundle_copy).manifest.verification == ()


def test_a_runtime_that_fails_its_gate_does_not_calibrate(bundle_copy: Path, photos: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    strict = msgspec.structs.replace(bundle.manifest, verification=(), limits=GateLimits(max_score_change=0.0))
    write_bundle(bundle.path, strict, bundle.files())
    options = ("--fpr", 0.2, "--runtime", "onnxruntime", "-o", tmp_path / "new.mdmf")
    result = mdmf("calibrate", bundle_copy, photos, *options)
    assert (result.exit_code, result.stdout, (tmp_path / "new.mdmf").exists()) == (1, "", False)
    assert "onnxruntime fp32: max_score_change" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("rates", [("--fpr", 0), ("--fpr", 1.5), ("--size-bound", -1), ("--fpr", 0.2, "--review", 0.1)])
def test_rates_that_make_no_sense_are_refused(bundle_copy: Path, photos: Path, rates: tuple[object, ...]) -> None:
    result = mdmf("calibrate", bundle_copy, photos, *rates, "--force")
    assert result.exit_code == 2
    assert Bundle.open(bundle_copy).calibration is None

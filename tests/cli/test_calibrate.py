"""`mdmf calibrate`, on a real if tiny model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from helpers.mdmf import mdmf
from PIL import Image

from mdmf_deploy.bundle.bundle import Bundle, write_bundle


def test_thresholds_are_written_and_shown(bundle_copy: Path, photos: Path) -> None:
    before = Bundle.open(bundle_copy)
    result = mdmf("calibrate", bundle_copy, photos, "--fpr", 0.1, "--fpr", 0.3, "--json")
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
    result = mdmf("calibrate", bundle_copy, photos, "--fpr", 0.1, "--size-bound", 0.01, "--size-bound", 3)
    assert re.search(r"up to 0.01 MP +[1-9] +0.1 +\S+ +\S+", result.stdout)
    assert re.search(r"0.01 to 3 MP +[1-9] +0.1 +\S+ +\S+", result.stdout)
    assert re.search(r"above 3 MP +0 +0.1 +none +uncertain; needs 9 more images", result.stdout)
    whole = mdmf("calibrate", bundle_copy, photos, "--fpr", 0.1, "--size-bound", "inf")
    assert re.search(r"all sizes +12 +0.1 +0\.\d+ +0.\d+ to 0.\d+", whole.stdout)
    assert "warning" not in whole.stderr


def test_too_few_images_are_a_warning_and_no_threshold(bundle_copy: Path, photos: Path) -> None:
    result = mdmf("calibrate", bundle_copy, photos)
    assert result.exit_code == 0
    assert "each size needs 99 calibration images" in result.stderr
    assert "needs 87 more images" in result.stdout
    assert Bundle.open(bundle_copy).calibration.groups[0].decides is None


def test_images_left_out_are_reported(bundle_copy: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "held-out"
    shutil.copytree(photos, folder)
    shutil.copy(folder / "photo00.jpg", folder / "copy.jpg")
    Image.new("RGB", (90, 90), "navy").save(folder / "blank.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert mdmf("bank", "build", bundle_copy, *photos.glob("*.png")).exit_code == 0
    assert mdmf("verify", bundle_copy).exit_code == 0
    result = mdmf("calibrate", bundle_copy, folder, "--fpr", 0.2)
    assert result.exit_code == 3
    assert result.stdout.startswith(
        "6 images; left out: 6 in the bank, 1 without texture, 1 duplicates, 1 unreadable, 0 other files"
    )
    assert "in the bank, left out" in result.stderr
    assert "broken.png" in result.stderr
    assert "no texture, left out: " in result.stderr


def test_the_banks_own_images_do_not_calibrate_it(bundle_copy: Path, photos: Path) -> None:
    assert mdmf("bank", "build", bundle_copy, photos).exit_code == 0
    assert mdmf("verify", bundle_copy).exit_code == 0
    result = mdmf("calibrate", bundle_copy, photos)
    assert result.exit_code == 2
    assert "no image is left to calibrate on (12 are in the bank, 0 have no texture, 0 unreadable)" in result.stderr
    assert Bundle.open(bundle_copy).calibration is None


def test_without_verification_there_is_no_calibration(bundle_copy: Path, photos: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    write_bundle(bundle.path, msgspec.structs.replace(bundle.manifest, verification=()), bundle.files())
    result = mdmf("calibrate", bundle_copy, photos)
    assert result.exit_code == 2
    assert "run `mdmf verify" in result.stderr


@pytest.mark.parametrize("rates", [("--fpr", 0), ("--fpr", 1.5), ("--size-bound", -1), ("--fpr", 0.2, "--review", 0.1)])
def test_rates_that_make_no_sense_are_refused(bundle_copy: Path, photos: Path, rates: tuple[object, ...]) -> None:
    result = mdmf("calibrate", bundle_copy, photos, *rates)
    assert result.exit_code == 2
    assert Bundle.open(bundle_copy).calibration is None

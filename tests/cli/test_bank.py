"""`mdmf bank build`, `compress` and `inspect`, on a real if tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.crop_plans import planned
from helpers.mdmf import mdmf

from mdmf_deploy.bundle.bundle import Bundle


def test_build_replaces_the_bank_and_reports_what_it_dropped(bundle_copy: Path, photos: Path) -> None:
    before = Bundle.open(bundle_copy)
    result = mdmf("bank", "build", bundle_copy, photos, "--force", "--json")
    assert result.exit_code == 0
    after = Bundle.open(bundle_copy)
    printed = json.loads(result.stdout)
    assert printed["bundle_id"] == after.bundle_id != before.bundle_id
    assert (
        (printed["images"], printed["signatures"]) == (12, 48) == (len(after.bank.sources), len(after.bank.signatures))
    )
    assert printed["dropped"] == ["verification"]
    assert "mdmf: dropped, because they held for the old bank: verification\n" in result.stderr
    assert result.stderr.splitlines()[-1] == (
        f"mdmf: wrote a bank of 12 images to {bundle_copy}; next: mdmf calibrate {bundle_copy} REAL_PHOTOS -o mine.mdmf"
    )
    assert after.manifest.files["model.onnx"] == before.manifest.files["model.onnx"]
    assert {source.uri for source in after.bank.sources} == {f"{photos.name}/{path.name}" for path in photos.iterdir()}


def test_build_elsewhere_leaves_the_original(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    before = Bundle.open(tiny_bundle).bundle_id
    ids = []
    for name, order in (("a", sorted(photos.iterdir())), ("b", sorted(photos.iterdir(), reverse=True))):
        result = mdmf("bank", "build", tiny_bundle, *order, "-o", tmp_path / name, "--max-signatures", 30)
        assert result.exit_code == 0
        ids.append(Bundle.open(tmp_path / name).bundle_id)
        assert len(Bundle.open(tmp_path / name).bank.signatures) == 30
    assert ids[0] == ids[1]
    assert Bundle.open(tiny_bundle).bundle_id == before


def test_build_with_points_is_build_and_compress(bundle_copy: Path, photos: Path, tmp_path: Path) -> None:
    result = mdmf("bank", "build", bundle_copy, photos, "--points", 10, "-o", tmp_path / "few.mdmf", "--json")
    assert result.exit_code == 0
    printed, bank = json.loads(result.stdout), Bundle.open(tmp_path / "few.mdmf").bank
    assert (printed["images"], printed["signatures"], printed["of_signatures"]) == (12, 10, 48)
    assert printed["max_mmd_change"] == bank.compression["max_mmd_change"] > 0.0
    assert mdmf("bank", "build", bundle_copy, photos, "--max-signatures", 0, "--force").exit_code == 0
    assert mdmf("bank", "compress", bundle_copy, "--points", 10, "--force").exit_code == 0
    assert np.array_equal(bank.signatures, Bundle.open(bundle_copy).bank.signatures)
    assert mdmf("verify", tmp_path / "few.mdmf", "--runtime", "onnxruntime").exit_code == 0
    shown = mdmf("bank", "inspect", tmp_path / "few.mdmf").stdout
    assert "f/P-greedy, 10 of 48 signatures" in shown


def test_a_bank_takes_one_crop_an_image_unless_told_otherwise(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    bundle = planned(tiny_bundle, 4, tmp_path / "planned.mdmf").path
    for more, signatures in (((), 48), (("--crops", 4), 192)):
        result = mdmf("bank", "build", bundle, photos, "-o", tmp_path / "new.mdmf", "--force", "--json", *more)
        assert json.loads(result.stdout)["signatures"] == signatures


@pytest.mark.parametrize("most", [0, 8192])
def test_build_wants_one_size(bundle_copy: Path, photos: Path, most: int) -> None:
    before = Bundle.open(bundle_copy).bundle_id
    result = mdmf("bank", "build", bundle_copy, photos, "--points", 10, "--max-signatures", most, "--force")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == ["mdmf: bank build: give either --points or --max-signatures"]
    assert Bundle.open(bundle_copy).bundle_id == before


def test_build_counts_copies_and_broken_files(bundle_copy: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reals"
    shutil.copytree(photos, folder)
    shutil.copy(folder / "photo00.jpg", folder / "copy.jpg")
    (folder / "cut.jpg").write_bytes((folder / "photo02.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("not an image")
    result = mdmf("bank", "build", bundle_copy, folder, "--force")
    assert result.exit_code == 3
    assert "cut.jpg (truncated)" in result.stderr
    assert "photo00.jpg is" in result.stderr
    assert len(Bundle.open(bundle_copy).bank.sources) == 12
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert (lines["duplicates"], lines["unreadable"], lines["skipped"]) == ("1", "1", "1")


def test_nothing_readable_changes_nothing(bundle_copy: Path, tmp_path: Path) -> None:
    before = Bundle.open(bundle_copy).bundle_id
    (tmp_path / "empty.jpg").write_bytes(b"")
    result = mdmf("bank", "build", bundle_copy, tmp_path / "empty.jpg", "--force")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("mdmf: bank: none of the 1 inputs is a readable image")
    assert Bundle.open(bundle_copy).bundle_id == before


def test_a_bundle_of_the_package_is_not_written_in_place(
    bundle_copy: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = bundle_copy.rename(tmp_path / "starter.mdmf")
    monkeypatch.setattr("mdmf_deploy.bundle.bundle.shipped", lambda name: tmp_path / f"{name}.mdmf")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to(shipped)
    before = (shipped / "manifest.json").read_bytes()
    for given in ("starter", shipped, tmp_path / "elsewhere/link"):
        for command in (("bank", "build"), ("calibrate",)):
            result = mdmf(*command, given, photos)
            assert result.exit_code == 2
            assert "'starter' is part of the installed package; give -o" in result.stderr
        result = mdmf("verify", given)
        assert result.exit_code == 0
        assert "mdmf: not recorded: 'starter' is part of the installed package; give -o" in result.stderr
    own = tmp_path / "elsewhere/mine.mdmf"
    assert mdmf("verify", "starter", "-o", own).exit_code == 0
    assert len(Bundle.open(own).manifest.verification) == len(Bundle.open(shipped).manifest.verification) + 1
    assert Bundle.open(own).bundle_id == Bundle.open(shipped).bundle_id
    assert mdmf("verify", own, "-o", shipped).exit_code == 2
    assert mdmf("verify", "starter", "-o", own, "--no-record").exit_code == 2
    assert (shipped / "manifest.json").read_bytes() == before
    stderr = mdmf("detect", "--bundle", shipped, photos).stderr
    assert "run `mdmf calibrate starter REAL_PHOTOS -o mine.mdmf`" in stderr


def test_inspect_shows_the_bank(tiny_bundle: Path) -> None:
    bank = Bundle.open(tiny_bundle).bank
    printed = json.loads(mdmf("bank", "inspect", tiny_bundle, "--json").stdout)
    assert (printed["signatures"], printed["width"]) == bank.signatures.shape
    assert printed["images"] == len(bank.sources) == sum(printed["folders"].values())
    assert printed["bytes"] == (tiny_bundle / "bank.safetensors").stat().st_size
    assert list(printed["quantiles"]) == ["0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"]
    shown = mdmf("bank", "inspect", tiny_bundle)
    assert shown.exit_code == 0
    assert "leave-one-image-out scores" in shown.stdout
    assert f"{len(bank.signatures)} of width 8" in shown.stdout


def calibrated(bundle: Path, photos: Path) -> Path:
    assert mdmf("calibrate", bundle, photos, "--fpr", "0.2", "--force").exit_code == 0
    return bundle


def test_compress_carries_the_calibration_over(bundle_copy: Path, photos: Path, tmp_path: Path) -> None:
    before = Bundle.open(calibrated(bundle_copy, photos))
    result = mdmf("bank", "compress", bundle_copy, "--points", 20, "-o", tmp_path / "small.mdmf", "--json")
    assert result.exit_code == 0
    printed, after = json.loads(result.stdout), Bundle.open(tmp_path / "small.mdmf")
    assert printed["bundle_id"] == after.bundle_id != before.bundle_id
    assert (
        (printed["signatures"], printed["of_signatures"])
        == (20, 48)
        == (len(after.bank.weights), len(before.bank.weights))
    )
    bound = printed["max_mmd_change"]
    assert after.bank.compression["max_mmd_change"] == bound > 0.0
    assert after.bank.sources == before.bank.sources
    assert before.calibration is not None
    assert after.calibration is not None
    assert after.calibration.carried == bound
    assert all(new >= old for new, old in zip(after.calibration.scores, before.calibration.scores, strict=True))
    assert "mdmf: note: calibration carried over" in result.stderr
    rows = [json.loads(line) for line in detect(tmp_path / "small.mdmf", photos)]
    exact = [json.loads(line) for line in detect(bundle_copy, photos)]
    for row, one in zip(rows, exact, strict=True):
        assert abs(row["score"] ** 0.5 - one["score"] ** 0.5) <= bound + 1e-4
    if after.manifest.verification:
        assert {row["verdict"] for row in rows} <= {"real", "uncertain", "generated"}
    assert Bundle.open(bundle_copy).bundle_id == before.bundle_id


def test_after_a_bank_swap_there_is_one_path_to_verdicts(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    """Build, calibrate, compress, detect: no step sends the user to another command first."""
    own, held_out = tiny_bundle.parent, sorted(photos.iterdir())
    built, mine, small = (tmp_path / f"{name}.mdmf" for name in ("built", "mine", "small"))
    assert mdmf("bank", "build", tiny_bundle, own / "photo100.jpg", *held_out[:6], "-o", built).exit_code == 0
    runtime = ("--runtime", "onnxruntime")
    assert mdmf("calibrate", built, *held_out[6:], "--fpr", 0.2, *runtime, "-o", mine).exit_code == 0
    compressed = mdmf("bank", "compress", mine, "--points", 14, "-o", small)
    assert compressed.exit_code == 0
    assert compressed.stderr.splitlines()[-1] == (
        f"mdmf: wrote a bank of 14 signatures to {small}; next: mdmf detect photos/ --bundle {small}"
    )
    for bundle in (mine, small):
        result = mdmf("detect", photos, "--bundle", bundle)
        assert (result.exit_code, "uncalibrated" in result.stdout, "warning" in result.stderr) == (0, False, False)


def test_a_bank_compressed_before_it_was_verified_can_still_be_calibrated(
    tiny_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    held_out = sorted(photos.iterdir())
    built, small, mine = (tmp_path / f"{name}.mdmf" for name in ("built", "small", "mine"))
    assert mdmf("bank", "build", tiny_bundle, *held_out[:6], "-o", built).exit_code == 0
    result = mdmf("bank", "compress", built, "--points", 20, "-o", small)
    assert (result.exit_code, "; next: mdmf calibrate" in result.stderr) == (0, True)
    options = ("--fpr", 0.2, "--runtime", "onnxruntime", "-o", mine)
    assert mdmf("calibrate", small, *held_out[6:], *options).exit_code == 0


def detect(bundle: Path, photos: Path) -> list[str]:
    result = mdmf("detect", photos, "--bundle", bundle, "--runtime", "onnxruntime", "-o", bundle / "../rows.jsonl")
    assert result.exit_code == 0
    return (bundle / "../rows.jsonl").read_text().splitlines()


def test_compressing_again_adds_the_error_bounds(bundle_copy: Path, photos: Path) -> None:
    calibrated(bundle_copy, photos)
    changes = []
    for points in (40, 20):
        assert mdmf("bank", "compress", bundle_copy, "--points", points, "--force").exit_code == 0
        bundle = Bundle.open(bundle_copy)
        changes.append(bundle.bank.compression["max_mmd_change"])
        assert bundle.bank.compression["of"] == 48
        assert bundle.calibration is not None
        assert bundle.calibration.carried == pytest.approx(changes[-1])
    assert changes[1] > changes[0] > 0.0


def test_compress_to_an_error_stays_within_it(bundle_copy: Path, photos: Path) -> None:
    calibrated(bundle_copy, photos)
    result = mdmf("bank", "compress", bundle_copy, "--max-error", 0.3, "--force", "--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed["max_error"] == pytest.approx(printed["max_mmd_change"] / printed["mmd_spread"])
    assert printed["max_error"] <= 0.3
    assert printed["signatures"] == len(Bundle.open(bundle_copy).bank.weights) < 48
    again = mdmf("bank", "compress", bundle_copy, "--max-error", printed["max_error"] / 2, "--force")
    assert again.exit_code == 2
    assert "compressed already" in again.stderr


@pytest.mark.parametrize(
    "options", [(), ("--points", 4, "--max-error", 0.1), ("--max-error", 0), ("--max-error", "nan")]
)
def test_compress_wants_one_sensible_goal(bundle_copy: Path, options: tuple[object, ...]) -> None:
    before = Bundle.open(bundle_copy).bundle_id
    result = mdmf("bank", "compress", bundle_copy, *options, "--force")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert Bundle.open(bundle_copy).bundle_id == before


def test_compress_to_an_error_needs_a_calibration(bundle_copy: Path) -> None:
    result = mdmf("bank", "compress", bundle_copy, "--max-error", 0.1, "--force")
    assert result.exit_code == 2
    assert f"run `mdmf calibrate {bundle_copy} REAL_PHOTOS -o mine.mdmf` first, or give --points" in result.stderr


def test_an_error_out_of_reach_reports_what_was_reached(bundle_copy: Path, photos: Path) -> None:
    before = Bundle.open(calibrated(bundle_copy, photos)).bundle_id
    result = mdmf("bank", "compress", bundle_copy, "--max-error", 0.05, "--candidates", 3, "--force")
    assert result.exit_code == 2
    assert "3 of 48 signatures reach" in result.stderr
    assert "give more --candidates" in result.stderr
    assert Bundle.open(bundle_copy).bundle_id == before


def test_a_bank_that_is_small_enough_stays_as_it_is(bundle_copy: Path, tmp_path: Path) -> None:
    before = Bundle.open(bundle_copy)
    for target in (bundle_copy, tmp_path / "other.mdmf"):
        result = mdmf("bank", "compress", bundle_copy, "--points", 48, "-o", target, "--force")
        assert result.exit_code == 0
        assert "the bank stays as it is" in result.stderr
        assert Bundle.open(target).bundle_id == before.bundle_id
        assert Bundle.open(target).manifest.verification == before.manifest.verification


def test_inspect_shows_a_compression(bundle_copy: Path) -> None:
    assert mdmf("bank", "compress", bundle_copy, "--points", 9, "--force").exit_code == 0
    shown = mdmf("bank", "inspect", bundle_copy)
    assert shown.exit_code == 0
    (line,) = (line for line in shown.stdout.splitlines() if line.startswith("compression"))
    bound = Bundle.open(bundle_copy).bank.compression["max_mmd_change"]
    assert line.split(maxsplit=1)[1] == f"f/P-greedy, 9 of 48 signatures, no MMD changed by more than {bound:.3g}"

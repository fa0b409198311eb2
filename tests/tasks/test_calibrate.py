"""Calibration takes held-out real images only, and only where verification vouches for the scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.handmade import FakeEngine, broken, extracted, make_bundle, record

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.calibration import Pair
from mdmf_deploy.bundle.manifest import CALIBRATION
from mdmf_deploy.errors import CalibrationError
from mdmf_deploy.mmd.reference import ReferenceReduction
from mdmf_deploy.tasks.bank.build import Duplicate, gather_bank, swap_bank
from mdmf_deploy.tasks.calibrate import (
    CalibrationReport,
    calibrate,
    default_review,
    gather_calibration,
    write_calibration,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "b.mdmf")


def held_out(count: int) -> list[object]:
    return [extracted(f"held/out{place}.png") for place in range(count)]


def gather(bundle: Bundle, images: list[object], *fprs: float) -> CalibrationReport:
    return gather_calibration(bundle, FakeEngine(), images, fprs or (0.1,))


def test_scores_are_the_means_of_the_reduction_over_crops(bundle: Bundle) -> None:
    images = [extracted(f"held/out{place}.png", crops=place % 4 + 1) for place in range(12)]
    report = gather(bundle, images)
    expected = {i.sha256: ReferenceReduction()(i.signatures, bundle.bank).mmd2.mean() for i in images}
    found = dict(zip(report.calibration.image_sha256, report.calibration.scores, strict=True))
    assert found == pytest.approx(expected, abs=1e-6)


def test_images_in_the_bank_are_left_out(bundle: Bundle) -> None:
    seen = extracted("renamed/3.png")
    assert seen.sha256 in bundle.bank.hashes
    report = gather(bundle, [seen, *held_out(9)])
    assert report.in_bank == ("renamed/3.png",)
    assert report.calibration == gather(bundle, held_out(9)).calibration


def test_copies_and_broken_files_are_reported(bundle: Bundle) -> None:
    report = gather(bundle, [broken("x.png"), *held_out(3), extracted("again/out1.png")])
    assert report.duplicates == (Duplicate("again/out1.png", "held/out1.png"),)
    assert [error.uri for error in report.errors] == ["x.png"]
    assert len(report.calibration.scores) == 3


def test_a_score_that_is_not_finite_does_not_calibrate(bundle: Bundle) -> None:
    bad = extracted("odd/nan.png", shift=float("nan"))
    report = gather(bundle, [bad, *held_out(9), extracted("copy/nan.png", shift=float("nan"))])
    assert report.calibration == gather(bundle, held_out(9)).calibration
    assert [(error.uri, error.code) for error in report.errors] == [("odd/nan.png", "not_finite")]
    with pytest.raises(CalibrationError, match="no image is left"):
        gather(bundle, [bad])


def test_order_does_not_matter(bundle: Bundle) -> None:
    assert gather(bundle, held_out(9)[::-1]).calibration == gather(bundle, held_out(9)).calibration


def test_nothing_left_is_an_error_that_says_why(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError, match="1 are in the bank, 1 unreadable"):
        gather(bundle, [extracted("3.png"), broken("x.png")])


def test_too_few_images_are_warned_of_with_the_number_needed(bundle: Bundle) -> None:
    report = gather(bundle, held_out(20), 0.05, 0.01)
    (warning,) = report.warnings
    assert "20 images" in warning
    assert "at least 99 images" in warning
    assert report.calibration.thresholds[0].score is not None
    assert report.calibration.thresholds[1].score is None


def test_an_engine_that_was_not_verified_is_sent_to_verify(bundle: Bundle, tmp_path: Path) -> None:
    failed = make_bundle(tmp_path / "failed", verification=(record(), record(passed=False)))
    for unverified, engine in ((bundle, FakeEngine("openvino")), (failed, FakeEngine())):
        with pytest.raises(CalibrationError, match=f"mdmf verify .* --runtime {engine.name}"):
            calibrate(unverified, engine, [], [0.1])


def test_a_shipped_bundle_is_named_in_hints_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.bundle.bundle.shipped", lambda name: tmp_path / f"{name}.mdmf")
    shipped = make_bundle(tmp_path / "starter.mdmf")
    with pytest.raises(CalibrationError, match=r"run `mdmf verify starter --runtime openvino -o mine\.mdmf` first"):
        calibrate(shipped, FakeEngine("openvino"), [], [0.1])


def test_a_calibration_is_bound_to_the_bundle_and_the_verified_pairs(bundle: Bundle) -> None:
    calibration = gather(bundle, held_out(9)).calibration
    assert calibration.bundle_id == bundle.bundle_id
    assert calibration.measured_on == Pair("onnxruntime", "fp32")
    assert calibration.holds_for == (Pair("onnxruntime", "fp32"),)


def test_writing_keeps_the_id_and_the_verification(bundle: Bundle) -> None:
    calibration = gather(bundle, held_out(9)).calibration
    write_calibration(bundle, calibration, bundle.path)
    opened = Bundle.open(bundle.path)
    assert opened.calibration == calibration
    assert opened.bundle_id == bundle.bundle_id
    assert opened.manifest.verification == bundle.manifest.verification


def test_a_calibration_of_another_bundle_is_not_written(bundle: Bundle, tmp_path: Path) -> None:
    other = swap_bank(bundle, gather_bank(bundle.manifest, held_out(2)).bank, tmp_path / "other")
    with pytest.raises(CalibrationError, match="does not belong"):
        write_calibration(other, gather(bundle, held_out(9)).calibration, other.path)
    assert CALIBRATION not in Bundle.open(other.path).manifest.files


@pytest.mark.parametrize(("fpr", "review"), [(0.01, 0.05), (0.05, 0.25), (0.2, 0.5), (0.7, 0.7)])
def test_review_is_five_times_the_rate_within_reason(bundle: Bundle, fpr: float, review: float) -> None:
    assert default_review(fpr) == pytest.approx(review)
    assert gather(bundle, held_out(5), fpr).calibration.review == pytest.approx(review)


def test_a_review_rate_below_the_rate_is_refused(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError, match="review"):
        gather_calibration(bundle, FakeEngine(), held_out(5), [0.1], 0.05)

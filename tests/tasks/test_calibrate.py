"""Calibration takes held-out real images only, and only where verification vouches for the scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
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
    Rates,
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
    return gather_calibration(bundle, FakeEngine(), images, Rates(fprs or (0.1,)))


def test_scores_are_the_means_of_the_reduction_over_crops(bundle: Bundle) -> None:
    images = [extracted(f"held/out{place}.png", crops=place % 4 + 1) for place in range(12)]
    report = gather(bundle, images)
    expected = {i.sha256: ReferenceReduction()(i.signatures, bundle.bank).mmd2.mean() for i in images}
    group = report.calibration.groups[0]
    found = dict(zip(group.image_sha256, group.scores, strict=True))
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


def test_a_score_that_no_image_can_have_does_not_calibrate(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gather(bundle, held_out(9)).calibration
    wrong = dataclasses.replace(bundle.bank, self_term=bundle.bank.self_term - 1.0)
    monkeypatch.setitem(vars(bundle), "bank", wrong)
    with pytest.raises(CalibrationError, match="9 unreadable"):
        gather(bundle, held_out(9))
    assert all(score >= 0.0 for score in whole.scores)


def test_order_does_not_matter(bundle: Bundle) -> None:
    assert gather(bundle, held_out(9)[::-1]).calibration == gather(bundle, held_out(9)).calibration


def test_nothing_left_is_an_error_that_says_why(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError, match="1 are in the bank, 0 have no texture, 1 unreadable"):
        gather(bundle, [extracted("3.png"), broken("x.png")])


def test_sizes_without_enough_images_are_warned_of_with_the_number_needed(bundle: Bundle) -> None:
    report = gather(bundle, held_out(20), 0.05, 0.01)
    (warning,) = report.warnings
    assert "will be uncertain (0.5 to 2 MP, 2 to 8 MP, above 8 MP)" in warning
    assert "at a false positive rate of 0.05 each size needs 19 calibration images" in warning
    assert [group.decides is not None for group in report.calibration.groups] == [True, False, False, False]
    assert report.calibration.groups[0].thresholds[1].score is None
    rates = Rates([0.05], size_bounds=())
    assert gather_calibration(bundle, FakeEngine(), held_out(20), rates).warnings == ()


def test_images_calibrate_the_group_of_their_size(bundle: Bundle) -> None:
    images = [extracted(f"{n}.jpg", width=1000 * n, height=700) for n in (1, 1000, 2, 3, 1001, 1002)]
    calibration = gather(bundle, images).calibration
    assert [len(group.scores) for group in calibration.groups] == [0, 2, 1, 3]
    assert calibration.groups[2].image_sha256 == (images[3].sha256,)


def test_images_without_texture_do_not_calibrate(bundle: Bundle) -> None:
    smooth = [extracted("sky.jpg", evidence=0.24), extracted("page.png", evidence=0.0)]
    report = gather(bundle, [*smooth, *held_out(9), extracted("rich.jpg", evidence=0.31)])
    assert report.featureless == ("sky.jpg", "page.png")
    assert len(report.calibration.scores) == 10
    assert report.calibration.least_evidence == 0.31
    with pytest.raises(CalibrationError, match="0 are in the bank, 2 have no texture, 0 unreadable"):
        gather(bundle, smooth)


def test_an_engine_that_was_not_verified_is_sent_to_verify(bundle: Bundle, tmp_path: Path) -> None:
    failed = make_bundle(tmp_path / "failed", verification=(record(), record(passed=False)))
    for unverified, engine in ((bundle, FakeEngine("openvino")), (failed, FakeEngine())):
        with pytest.raises(CalibrationError, match=f"mdmf verify .* --runtime {engine.name}"):
            calibrate(unverified, engine, [], Rates([0.1]))


def test_a_shipped_bundle_is_named_in_hints_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.bundle.bundle.shipped", lambda name: tmp_path / f"{name}.mdmf")
    shipped = make_bundle(tmp_path / "starter.mdmf")
    with pytest.raises(CalibrationError, match=r"run `mdmf verify starter --runtime openvino -o mine\.mdmf` first"):
        calibrate(shipped, FakeEngine("openvino"), [], Rates([0.1]))


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
        gather_calibration(bundle, FakeEngine(), held_out(5), Rates([0.1], 0.05))


def test_a_bundle_of_schema_1_gets_the_new_schema_with_its_new_calibration(bundle: Bundle) -> None:
    old = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, schema_version=1))
    new = write_calibration(old, gather(old, held_out(9)).calibration, bundle.path)
    assert (new.manifest.schema_version, new.bundle_id) == (2, bundle.bundle_id)
    assert Bundle.open(bundle.path).calibration is not None

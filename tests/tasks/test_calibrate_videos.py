"""Videos calibrate videos, photographs calibrate photographs, and each leaves the other's thresholds as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.handmade import FakeEngine, FakeExtraction, extracted, make_bundle

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.videos import VideoFrames
from mdmf_deploy.errors import CalibrationError
from mdmf_deploy.mmd.reference import ReferenceReduction
from mdmf_deploy.tasks.bank.compress import carry_calibration
from mdmf_deploy.tasks.calibrate import CalibrationReport, Rates, gather_calibration, write_calibration

RATES = Rates((0.2,), frames=3)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "b.mdmf")


def video(name: str, frames: int = 3) -> FakeExtraction:
    times = tuple(float(n) for n in range(frames))
    return extracted(name, crops=frames, frames=VideoFrames(times, (0.8,) * frames), width=1920, height=1080)


def photographs(count: int, name: str = "out") -> list[FakeExtraction]:
    return [extracted(f"held/{name}{n}.png") for n in range(count)]


def films(count: int, name: str = "film") -> list[FakeExtraction]:
    return [video(f"held/{name}{n}.mp4") for n in range(count)]


def gather(bundle: Bundle, inputs: list[FakeExtraction], rates: Rates = RATES) -> CalibrationReport:
    return gather_calibration(bundle, FakeEngine(), inputs, rates)  # type: ignore[arg-type]


def test_videos_form_a_group_of_their_own(bundle: Bundle) -> None:
    report = gather(bundle, [*films(4), *photographs(6)])
    group = report.calibration.videos
    assert group is not None
    wanted = {one.sha256: ReferenceReduction()(one.signatures, bundle.bank).mmd2.mean() for one in films(4)}
    assert dict(zip(group.video_sha256, group.scores, strict=True)) == pytest.approx(wanted, abs=1e-6)
    assert (group.frames, len(report.calibration.scores), report.images, report.videos) == (3, 6, 6, 4)
    assert report.calibration.groups == gather(bundle, photographs(6)).calibration.groups
    assert report.shortage is None
    assert gather(bundle, photographs(6)).calibration.videos is None


def test_each_leaves_the_others_thresholds(bundle: Bundle) -> None:
    first = gather(bundle, photographs(6)).calibration
    bundle = write_calibration(bundle, first, bundle.path)
    assert (bundle.manifest.schema_version, bundle.calibration) == (2, first)
    second = gather(bundle, films(5), Rates((0.3, 0.2), frames=3)).calibration
    assert (second.groups, second.review, second.fprs) == (first.groups, first.review, first.fprs)
    bundle = write_calibration(bundle, second, bundle.path)
    assert (bundle.manifest.schema_version, bundle.calibration) == (3, second)
    third = gather(Bundle.open(bundle.path), photographs(7, "other")).calibration
    assert third.videos == second.videos
    assert third.groups != first.groups
    bundle = write_calibration(bundle, third, bundle.path)
    fourth = gather(Bundle.open(bundle.path), films(4, "more")).calibration
    assert fourth.groups == third.groups
    assert fourth.videos != third.videos


def test_videos_alone_calibrate_a_bundle_without_thresholds(bundle: Bundle) -> None:
    calibration = gather(bundle, films(4)).calibration
    assert (calibration.scores, calibration.videos is None) == ((), False)
    bundle = write_calibration(bundle, calibration, bundle.path)
    assert Bundle.open(bundle.path).calibration == calibration


def test_videos_with_fewer_frames_are_left_out(bundle: Bundle) -> None:
    report = gather(bundle, [video("short.mp4", 2), *films(4)])
    assert (report.short, report.videos) == (("short.mp4",), 4)
    assert report.calibration == gather(bundle, films(4)).calibration
    with pytest.raises(CalibrationError, match="1 are videos of too few frames"):
        gather(bundle, [video("short.mp4", 2)])


def test_too_few_videos_are_a_shortage(bundle: Bundle) -> None:
    report = gather(bundle, films(3))
    assert report.shortage is not None
    assert report.warnings == (f"no video can be called real or generated: {report.shortage}",)
    assert gather(bundle, [*photographs(6), *films(3)]).shortage == report.shortage


def test_a_compressed_bank_raises_the_scores_of_videos(bundle: Bundle) -> None:
    calibration = gather(bundle, [*films(5), *photographs(6)]).calibration
    carried = carry_calibration(carry_calibration(calibration, 0.01, "x"), 0.02, "y")
    before, after = calibration.videos, carried.videos
    assert before is not None
    assert after is not None
    assert (after.carried, after.video_sha256) == (pytest.approx(0.03), before.video_sha256)
    wanted = [(max(score, 0.0) ** 0.5 + 0.03) ** 2 for score in before.scores]
    assert after.scores == pytest.approx(wanted)
    assert after.thresholds[0].score == after.scores[-1]

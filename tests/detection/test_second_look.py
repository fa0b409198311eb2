"""A second look: changed copies of images near the threshold, which can take a verdict away and never give one."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from helpers.handmade import calibration_of
from helpers.rows import timeless
from helpers.synthetic_photos import synthetic_photo
from PIL import Image

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.feed import prepare
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.second_look import CUT, QUALITIES, SCALES, SecondLook, copies
from mdmf_deploy.detection.sources import Source, Taken, take
from mdmf_deploy.detection.verdicts import Copy, Verdicts
from mdmf_deploy.errors import UsageError
from mdmf_deploy.images.decode import ReadLimits, decode
from mdmf_deploy.images.pixels import snapshot
from mdmf_deploy.tasks.calibrate import write_calibration

CROP = 56  # of the tiny bundle
ALL = len(QUALITIES) + len(SCALES) + 1


def calibrate(bundle: Path, threshold: float, bounds: Sequence[float] = ()) -> None:
    """Give the bundle this threshold at 10%, with 0 to twice the threshold near it, and nothing to review."""
    opened = Bundle.open(bundle)
    scores = [0.0] * 17 + [threshold] * 2
    write_calibration(opened, calibration_of(scores, [0.1], 0.1, opened.bundle_id, bounds), bundle)


def scores_of(bundle: Path, pixels: np.ndarray) -> list[float]:
    """Return the scores of an image and of its copies, each as of an image of its own."""
    with Detector(bundle) as detector:
        rows = detector.detect([pixels, *copies(pixels, CROP)])
    return [row.score for row in rows if row.score is not None]


def probed(bundle: Path, sources: Source | Sequence[Source], **options: Any) -> list[Row]:
    with Detector(bundle, probe=True, **options) as detector:
        return detector.detect(sources)


def between(scores: Sequence[float]) -> float:
    """Return a threshold between an image's score and its most distant copy's."""
    return (scores[0] + max(scores[1:], key=lambda score: abs(score - scores[0]))) / 2


def test_copies_are_encoded_again_shrunk_and_shifted() -> None:
    pixels = synthetic_photo(3, 130, 101)
    *encoded, large, small, shifted = copies(pixels, CROP)
    for data, quality in zip(encoded, QUALITIES, strict=True):
        assert isinstance(data, bytes)
        wanted = io.BytesIO()
        Image.fromarray(pixels).save(wanted, "JPEG", quality=quality, subsampling=2)
        with Image.open(io.BytesIO(data)) as found, Image.open(wanted) as again:
            assert (found.size, found.quantization) == ((130, 101), again.quantization)
            assert found.layer[0][1:3] == (2, 2)  # type: ignore[attr-defined]
    for copy, scale in zip((large, small), SCALES, strict=True):
        size = round(130 * scale), round(101 * scale)
        assert np.array_equal(copy, Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    assert np.array_equal(shifted, pixels[CUT[0] :, CUT[1] :])


@pytest.mark.parametrize(("side", "count"), [(CROP - 1, 2), (CROP, 2), (CROP + 10, 3), (CROP + 14, 4), (75, ALL)])
def test_a_copy_is_left_out_where_it_would_be_smaller_than_a_crop(side: int, count: int) -> None:
    pixels = synthetic_photo(1, 200, side)
    found = list(copies(pixels, CROP))
    assert len(found) == count
    assert all(isinstance(copy, bytes) or min(copy.shape[:2]) >= CROP for copy in found)


def test_what_no_jpeg_can_hold_is_not_encoded() -> None:
    assert [copy.shape for copy in copies(np.zeros((1, 65_501, 3), np.uint8), 1) if not isinstance(copy, bytes)]


@pytest.mark.parametrize("seed", range(2))
def test_the_row_holds_the_range_of_scores_of_the_image_and_its_copies(bundle_copy: Path, seed: int) -> None:
    pixels = synthetic_photo(seed, 100, 90)
    scores = scores_of(bundle_copy, pixels)
    assert len(set(scores)) == 1 + ALL
    calibrate(bundle_copy, between(scores))
    [row] = probed(bundle_copy, pixels)
    assert (row.score, row.probes, row.lowest_probe, row.highest_probe) == (scores[0], ALL, min(scores), max(scores))
    assert (row.verdict, row.reason) == ("uncertain", "unstable")
    assert row.threshold is not None
    assert row.p_value is not None
    # A little beyond all of them, nothing flips.
    for threshold, verdict in ((min(scores) * 0.999, "generated"), (max(scores) * 1.001, "real")):
        calibrate(bundle_copy, threshold)
        [row] = probed(bundle_copy, pixels)
        assert (row.verdict, row.reason) == (verdict, None)
        assert row.probes == (ALL if scores[0] <= 2 * threshold else None)


def test_a_second_look_only_takes_verdicts_away_and_changes_no_other_column(bundle_copy: Path, photos: Path) -> None:
    paths = sorted(photos.iterdir())
    with Detector(bundle_copy) as detector:
        scores = sorted(row.score or 0.0 for row in detector.detect(paths))
    calibrate(bundle_copy, scores[6])
    with Detector(bundle_copy) as detector:
        plain = detector.detect([*paths, "nowhere.jpg"])
    rows = probed(bundle_copy, [*paths, "nowhere.jpg"])
    ours = {"probes": None, "lowest_probe": None, "highest_probe": None, "verdict": "error", "reason": None}
    for before, after in zip(timeless(plain), timeless(rows), strict=True):
        assert after.verdict in (before.verdict, "uncertain")
        assert msgspec.structs.replace(before, **ours) == msgspec.structs.replace(after, **ours)
        assert (after.verdict == before.verdict) == (after.reason != "unstable")
    assert {row.reason for row in rows} == {None, "unstable"}


def test_an_image_far_from_the_threshold_is_not_looked_at_again(bundle_copy: Path) -> None:
    pixels = synthetic_photo(0, 100, 90)
    score = scores_of(bundle_copy, pixels)[0]
    for threshold, near in ((score * 0.49, False), (score * 0.51, True), (score * 2.0, True)):
        calibrate(bundle_copy, threshold)
        [row] = probed(bundle_copy, pixels)
        assert (row.probes is not None) == near
        assert (row.lowest_probe is None) == (row.highest_probe is None) == (not near)
    # Nor is one without a threshold.
    for pixels, bounds in ((np.full((90, 100, 3), 99, np.uint8), ()), (synthetic_photo(0, 100, 90), (0.0095,))):
        calibrate(bundle_copy, score, bounds)
        [row] = probed(bundle_copy, pixels)
        assert (row.verdict, row.threshold, row.probes) == ("uncertain", None, None)


def test_copies_are_judged_in_the_size_group_of_the_image(bundle_copy: Path) -> None:
    """The group of the shrunk copies has no thresholds, and would give none of them a verdict."""
    pixels = synthetic_photo(0, 100, 90)
    calibrate(bundle_copy, scores_of(bundle_copy, pixels)[0])
    opened = Bundle.open(bundle_copy)
    assert opened.calibration is not None
    [group] = opened.calibration.groups
    bound, none = 0.0085, (msgspec.structs.replace(group.thresholds[0], score=None),)
    empty = msgspec.structs.replace(group, up_to=bound, scores=(), image_sha256=(), thresholds=none)
    parted = msgspec.structs.replace(opened.calibration, groups=(empty, msgspec.structs.replace(group, above=bound)))
    write_calibration(opened, parted, bundle_copy)
    [row] = probed(bundle_copy, pixels)
    assert (row.size_group, row.probes) == ("above 0.0085 MP", ALL)


def test_a_group_of_other_sizes_does_not_judge_a_copy(bundle_copy: Path) -> None:
    """Larger images have no thresholds here."""
    calibrate(bundle_copy, 0.5, [1.0])
    opened = Bundle.open(bundle_copy)
    assert opened.calibration is not None
    assert [group.decides for group in opened.calibration.groups] == [0.5, None]
    found = verdicts_of(bundle_copy).looked_again(near_row(), [Copy(0.9, 0.9)])
    assert (found.reason, found.probes) == ("unstable", 1)


def verdicts_of(bundle: Path) -> Verdicts:
    return Verdicts(Bundle.open(bundle), "onnxruntime", "fp32", 1)


def near_row(**facts: object) -> Row:
    values = {"score": 0.5, "verdict": "real", "threshold": 0.5, "width": 100, "height": 100, "p_value": 0.2}
    return Row(uri="a.jpg", **{**values, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdict", "scores", "after"),
    [
        ("real", [0.1, 0.4], ("real", None)),
        ("real", [0.1, 0.6], ("uncertain", "unstable")),
        ("real", [0.6, 0.9], ("uncertain", "unstable")),
        ("generated", [0.6, 0.9], ("generated", None)),
        ("generated", [0.6, 0.1], ("uncertain", "unstable")),
        ("generated", [0.1, 0.2], ("uncertain", "unstable")),
        ("uncertain", [0.6, 0.9], ("uncertain", "borderline")),
        ("uncertain", [0.1, 0.9], ("uncertain", "unstable")),
        ("real", [], ("real", None)),
        ("real", [float("nan")], ("real", None)),
    ],
)
def test_a_verdict_flips_if_real_and_generated_are_both_found(
    bundle_copy: Path, verdict: str, scores: list[float], after: tuple[str, str | None]
) -> None:
    calibrate(bundle_copy, 0.5)
    row = near_row(verdict=verdict, reason="borderline" if verdict == "uncertain" else None)
    found = verdicts_of(bundle_copy).looked_again(row, [Copy(score, 0.9) for score in scores])
    assert (found.verdict, found.reason) == after
    assert found.probes == sum(score == score for score in scores)


def test_a_copy_without_texture_does_not_count(bundle_copy: Path) -> None:
    calibrate(bundle_copy, 0.5)
    found = verdicts_of(bundle_copy).looked_again(near_row(), [Copy(0.9, 0.1), Copy(0.4, 0.9)])
    assert (found.verdict, found.probes, found.lowest_probe, found.highest_probe) == ("real", 1, 0.4, 0.5)


def test_videos_and_their_frames_are_not_near(bundle_copy: Path) -> None:
    calibrate(bundle_copy, 0.5)
    verdicts = verdicts_of(bundle_copy)
    assert verdicts.near(near_row())
    assert not verdicts.near(near_row(frames=10))
    assert not verdicts.near(near_row(frame_time=1.0, threshold=None))


def test_rows_do_not_depend_on_the_batch_the_threads_or_the_kind_of_source(bundle_copy: Path, photos: Path) -> None:
    paths = sorted(photos.iterdir())
    with Detector(bundle_copy) as detector:
        calibrated = sorted(row.score or 0.0 for row in detector.detect(paths))[6]
    calibrate(bundle_copy, calibrated)
    rows = timeless(probed(bundle_copy, paths))
    assert {row.probes for row in rows} == {ALL, None}
    for batch_size, threads in ((1, 1), (3, 2)):
        assert timeless(probed(bundle_copy, paths, batch_size=batch_size, threads=threads)) == rows
    path, row = next((path, row) for path, row in zip(paths, rows, strict=True) if row.probes)
    with Image.open(path) as image, path.open("rb") as file:
        sources: list[Source] = [path.read_bytes(), file, image, decode(path.read_bytes()).pixels]
        for other in probed(bundle_copy, sources):
            columns = ("score", "verdict", "reason", "probes", "lowest_probe", "highest_probe")
            assert [getattr(other, name) for name in columns] == [getattr(row, name) for name in columns]


def test_signatures_are_the_images_own(bundle_copy: Path, photos: Path) -> None:
    path = min(photos.iterdir())
    calibrate(bundle_copy, scores_of(bundle_copy, decode(path.read_bytes()).pixels)[0])
    kept = []
    with Detector(bundle_copy, probe=True) as detector:
        [[row]] = detector.stream_by_source(path, on_extraction=kept.append)
    assert [extraction.uri for extraction in kept] == [row.uri]
    assert row.probes == ALL


def test_a_worker_opens_a_detector_that_looks_again(bundle_copy: Path) -> None:
    pixels = synthetic_photo(0, 100, 90)
    calibrate(bundle_copy, scores_of(bundle_copy, pixels)[0])
    with Detector(bundle_copy, probe=True) as detector, detector.spec().open() as same:
        assert timeless(same.detect(pixels)) == timeless(detector.detect(pixels))


def test_crops_that_another_process_made_cannot_be_looked_at_again(bundle_copy: Path) -> None:
    with Detector(bundle_copy, probe=True) as detector:
        ready = prepare(0, synthetic_photo(0, 100, 90), detector.bundle.manifest.preprocessing, 1, ReadLimits())
        with pytest.raises(UsageError, match="rows_of has no images to look at again; open the detector without"):
            next(detector.rows_of([ready]))


def changed(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize(
    ("change", "message"),
    [(changed, "it has changed since it was scored"), (Path.unlink, "does not exist")],
    ids=["changed", "gone"],
)
def test_an_image_that_cannot_be_read_again_keeps_its_row(
    bundle_copy: Path, tmp_path: Path, messages: Callable[[], str], change: Callable[[Path], None], message: str
) -> None:
    calibrate(bundle_copy, 0.5)
    path = tmp_path / "a.jpg"
    Image.fromarray(synthetic_photo(0, 100, 90)).save(path)
    limits = ReadLimits()
    second_look = SecondLook([take(0, path, limits)], verdicts_of(bundle_copy), CROP, limits)
    assert len(list(second_look.sources())) == 1
    change(path)
    [row] = second_look.rows((near_row(sha256="0" * 64),), lambda copies: [])
    assert (row.verdict, row.reason, row.probes, row.lowest_probe, row.highest_probe) == ("real", None, 0, 0.5, 0.5)
    assert message in messages()


def test_an_image_whose_copies_take_too_much_memory_keeps_its_row(
    bundle_copy: Path, messages: Callable[[], str]
) -> None:
    pixels = synthetic_photo(0, 100, 90)
    calibrate(bundle_copy, scores_of(bundle_copy, pixels)[0])
    for most, probes in ((12 * 100 * 90 - 1, 0), (2**30, ALL)):
        [row] = probed(bundle_copy, pixels, limits=ReadLimits(max_memory=most))
        assert (row.status, row.probes) == ("ok", probes)
        assert ("array:0: no second look: its copies: decoding it takes" in messages()) == (probes == 0)


def test_sources_are_let_go_with_their_rows(bundle_copy: Path) -> None:
    """Rows far from the threshold let go of theirs, too. Each row is looked at with its own source."""
    calibrate(bundle_copy, 0.5)
    limits = ReadLimits()
    images = [Image.fromarray(synthetic_photo(seed, 80 + seed, 90)) for seed in range(3)]
    taken = [Taken(snapshot(image, "image", limits), "image") for image in images]
    second_look = SecondLook(taken, verdicts_of(bundle_copy), CROP, limits)
    sizes = []
    seen = second_look.sources()
    for row in (near_row(score=3.0), near_row(), near_row()):
        next(seen)

        def scored(copies: Sequence[Taken]) -> list[Copy]:
            sizes.append([copy.source.shape for copy in copies if isinstance(copy.source, np.ndarray)][-1])
            return []

        second_look.rows((row,), scored)  # type: ignore[arg-type]
    assert sizes == [(90 - CUT[0], 80 + seed - CUT[1], 3) for seed in (1, 2)]

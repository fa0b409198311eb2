"""Detector: rows from a bundle, identical on every run and for every batch, with verdicts only where they hold."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers.crop_plans import planned
from helpers.featureless import featureless
from helpers.handmade import calibration_of
from helpers.rows import timeless
from helpers.synthetic_photos import synthetic_photo
from PIL import Image

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.detection import detector as detector_module
from mdmf_deploy.detection import reductions
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.feed import Extraction
from mdmf_deploy.detection.pipeline import extract
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.sources import Named, Source
from mdmf_deploy.errors import UsageError
from mdmf_deploy.images.decode import ReadLimits, decode
from mdmf_deploy.mmd import Scores
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.reference import ReferenceReduction
from mdmf_deploy.tasks.calibrate import write_calibration


@pytest.fixture(scope="module")
def paths(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """40 inputs: every photograph three times, with unreadable files between them."""
    broken = tmp_path_factory.mktemp("broken")
    (broken / "empty.jpg").write_bytes(b"")
    (broken / "cut.jpg").write_bytes((photos / "photo00.jpg").read_bytes()[:400])
    good = sorted(photos.iterdir())
    return [*good, broken / "empty.jpg", *good, broken / "cut.jpg", broken / "nowhere.png", broken, *good]


def calibrate(bundle: Path, scores: Sequence[float], fpr: float = 0.1, bounds: Sequence[float] = ()) -> None:
    opened = Bundle.open(bundle)
    write_calibration(opened, calibration_of(scores, [fpr], 0.5, opened.bundle_id, bounds), bundle)


def test_rows_are_identical_on_every_run_and_for_every_batch(tiny_bundle: Path, paths: list[Path]) -> None:
    runs = []
    for batch_size, threads in ((32, None), (32, None), (1, 1), (7, 2)):
        with Detector(tiny_bundle, "onnxruntime", threads, batch_size=batch_size) as detector:
            runs.append(timeless(detector.detect(paths)))
    assert [row.uri for row in runs[0]] == [path.as_posix() for path in paths]
    assert [row.error_code for row in runs[0] if row.status == "error"] == [
        *("empty", "truncated", "missing", "not_a_file")
    ]
    for run in runs[1:]:
        assert run == runs[0]


@pytest.mark.parametrize("crops", [1, 3])
def test_scores_are_those_of_the_float64_reference(tiny_bundle: Path, photos: Path, crops: int) -> None:
    with Detector(tiny_bundle, crops=crops) as detector:
        rows = detector.detect(sorted(photos.iterdir()))
        bank = detector.bundle.bank
        extracted = extract(
            sorted(photos.iterdir()), detector.engine, detector.bundle.manifest.preprocessing, crops=crops
        )
        for row, image in zip(rows, extracted, strict=True):
            assert image.signatures is not None
            wanted = [ReferenceReduction()(crop[None], bank) for crop in image.signatures]
            mean = np.mean([crop.mmd2 for crop in wanted])
            assert row.score == pytest.approx(mean, abs=4 * float(np.finfo(np.float32).eps))
            shares = np.concatenate([crop.contributions[0] for crop in wanted])
            assert row.contributions == pytest.approx(shares, abs=1e-5)
            assert np.mean(row.contributions) == pytest.approx(row.score, rel=1e-12)
    assert (rows[0].crop == "center") == (crops == 1)


def test_a_path_its_bytes_and_its_pixels_score_alike(tiny_bundle: Path, photos: Path) -> None:
    path = photos / "photo03.png"
    with Detector(tiny_bundle) as detector:
        rows = detector.detect([path, path.read_bytes(), decode(path.read_bytes()).pixels, str(path)])
    assert len({row.score for row in rows}) == 1
    assert [row.uri for row in rows] == [path.as_posix(), "bytes:1", "array:2", path.as_posix()]
    assert [row.format for row in rows] == ["png", "png", "array", "png"]


def test_a_single_source_gives_a_list_of_one_row(tiny_bundle: Path, photos: Path) -> None:
    path = photos / "photo00.jpg"
    alone: list[Source] = [path, str(path), path.read_bytes(), np.zeros((60, 60, 3), np.uint8)]
    with Detector(tiny_bundle) as detector:
        for source in alone:
            [row] = detector.detect(source)
            assert row.status == "ok"
        assert detector.detect([]) == []


def test_a_stream_of_a_single_source_is_one_row(tiny_bundle: Path, photos: Path) -> None:
    path = photos / "photo03.png"
    pixels = decode(path.read_bytes()).pixels
    with Detector(tiny_bundle) as detector, path.open("rb") as file, Image.open(path) as image:
        rows = [row for source in (str(path), path, file, image, pixels) for row in detector.stream(source)]
        assert [row.uri for row in rows] == [path.as_posix()] * 3 + ["image:0", "array:0"]
        [opencv] = detector.detect(pixels[..., ::-1], colour="bgr")
        assert len({row.score for row in [*rows, opencv]}) == 1
        assert opencv.sha256 == rows[-1].sha256
        with pytest.raises(UsageError, match="colour 'hsv' is not known; choose rgb, or bgr"):
            detector.detect(pixels, colour="hsv")  # type: ignore[arg-type]


def test_files_and_images_may_be_closed_before_the_next_source(tiny_bundle: Path, photos: Path) -> None:
    paths = sorted(photos.iterdir())

    def opened(open_it: Callable[[Path], AbstractContextManager[Source]]) -> Iterator[Source]:
        for path in paths:
            with open_it(path) as source:
                yield source

    with Detector(tiny_bundle) as detector:
        wanted = [row.score for row in detector.detect(paths)]
        for open_it in (lambda path: path.open("rb"), Image.open):
            assert [row.score for row in detector.detect(opened(open_it))] == wanted


def test_names_are_for_one_source_or_for_each(tiny_bundle: Path) -> None:
    frame = np.zeros((60, 60, 3), np.uint8)
    with Detector(tiny_bundle) as detector:
        assert [row.uri for row in detector.detect(frame, name="frame 12")] == ["frame 12"]
        assert [row.uri for row in detector.stream(b"?", name="upload 7")] == ["upload 7"]
        rows = detector.detect([Named(frame, "frame 1"), frame, Named(np.zeros((2, 2), np.float32), "frame 3")])
        assert [row.uri for row in rows] == ["frame 1", "array:1", "frame 3"]
        assert (rows[2].error or "").startswith("frame 3 is float32 of shape (2, 2); expected uint8")
        with pytest.raises(UsageError, match="sources is a NoneType; give one source"):
            detector.detect(None)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"among several, write Named\(source, name\)"):
            detector.detect([frame], name="frame 12")
        with pytest.raises(UsageError, match="source 1 is a int; give a path, bytes, a file object"):
            detector.detect([frame, 7])  # type: ignore[list-item]


def test_a_closed_detector_says_so(tiny_bundle: Path, photos: Path) -> None:
    paths = sorted(photos.iterdir())
    detector = Detector(tiny_bundle, batch_size=1)
    running, waiting = detector.stream(paths), detector.stream(paths)
    assert next(running).status == "ok"
    detector.close()
    detector.close()
    for rows in (running, waiting):
        with pytest.raises(UsageError, match="this detector is closed"):
            list(rows)
    for call in (detector.detect, detector.stream):
        with pytest.raises(UsageError, match="this detector is closed"):
            call(paths[0])
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("mdmf")] == []


def test_a_detector_is_not_closed_under_a_thread_that_waits(tiny_bundle: Path) -> None:
    asked, answered = threading.Event(), threading.Event()

    def late() -> Iterator[Source]:
        asked.set()
        answered.wait()
        yield np.zeros((60, 60, 3), np.uint8)

    detector = Detector(tiny_bundle)
    rows: list[Row] = []
    reader = threading.Thread(target=lambda: rows.extend(detector.stream(late())))
    reader.start()
    asked.wait()
    with pytest.raises(UsageError, match="another thread is waiting for a row of this detector"):
        detector.close()
    answered.set()
    reader.join()
    assert [row.status for row in rows] == ["ok"]
    detector.close()


def test_a_detector_and_its_bundle_have_short_texts(tiny_bundle: Path) -> None:
    with Detector(tiny_bundle, "onnxruntime") as detector:
        assert repr(detector) == "<Detector tiny.mdmf on onnxruntime fp32>"
        assert repr(detector.bundle) == f"<Bundle {tiny_bundle} ({detector.bundle.bundle_id[:12]})>"
    assert repr(detector) == "<Detector tiny.mdmf on onnxruntime fp32, closed>"


def test_every_row_names_its_bundle_runtime_and_precision(tiny_bundle: Path, photos: Path) -> None:
    with Detector(tiny_bundle) as detector:
        good, bad = detector.detect([photos / "photo00.jpg", b"?"])
        assert detector.runtime == "onnxruntime"
        for row in (good, bad):
            assert (row.bundle_id, row.runtime, row.precision) == (detector.bundle.bundle_id, "onnxruntime", "fp32")
    assert (bad.verdict, bad.status, bad.score, bad.error_code) == ("error", "error", None, "unsupported_format")
    assert (bad.error or "").startswith("this is plain text, not an image; JPEG, PNG, ")
    assert (good.status, good.error_code, good.error, good.crop) == ("ok", None, None, "center")


def test_every_row_names_the_calibration_that_judged_it(bundle_copy: Path, photos: Path) -> None:
    """Thresholds are not part of the bundle_id, so rows of the same bundle_id may differ in verdicts."""
    seen = {}
    for fpr in (None, 0.1, 0.3):
        if fpr is not None:
            calibrate(bundle_copy, [0.0] * 20, fpr)
        with Detector(bundle_copy) as detector:
            rows = detector.detect([photos / "photo00.jpg", b"?"])
        assert [row.status for row in rows] == ["ok", "error"]
        [seen[fpr]] = {(row.bundle_id, row.calibration_id) for row in rows}
    assert seen[None] == (detector.bundle.bundle_id, None)
    assert len(set(seen.values())) == 3
    assert seen[0.3][1] == hashlib.sha256((bundle_copy / "calibration.json").read_bytes()).hexdigest()


def test_verdicts_come_from_the_calibration(bundle_copy: Path, photos: Path) -> None:
    with Detector(bundle_copy) as detector:
        scores = sorted(row.score or 0.0 for row in detector.detect(sorted(photos.iterdir())))
    calibrate(bundle_copy, scores)
    with Detector(bundle_copy) as detector:
        assert detector.caveat is None
        rows = sorted(detector.detect(sorted(photos.iterdir())), key=lambda row: row.score or 0.0)
    # (k + 1) / (n + 1) with n = 12 and k counting the image itself.
    assert [row.p_value for row in rows] == [pytest.approx((12 - n + 1) / 13) for n in range(12)]
    assert [row.verdict for row in rows] == ["real"] * 7 + ["uncertain"] * 5
    assert [row.reason for row in rows] == [None] * 7 + ["borderline"] * 5
    assert {row.size_group for row in rows} == {"all sizes"}
    assert all(0.25 < row.evidence <= 1.0 for row in rows)  # type: ignore[operator]
    assert {row.threshold for row in rows} == {scores[-1]}
    calibrate(bundle_copy, [0.0 for _ in scores])
    with Detector(bundle_copy) as detector:
        rows = detector.detect(sorted(photos.iterdir()))
        assert {(row.verdict, row.reason) for row in rows} == {("generated", None)}


def test_without_a_calibration_verdicts_are_withheld(tiny_bundle: Path, photos: Path) -> None:
    with Detector(tiny_bundle) as detector:
        [row] = detector.detect(photos / "photo00.jpg")
        assert (row.verdict, row.reason) == ("uncalibrated", "no_thresholds")
        assert (row.p_value, row.threshold, row.size_group) == (None, None, None)
        assert detector.caveat is not None
        assert f"run `mdmf calibrate {tiny_bundle}" in detector.caveat


def test_without_verification_verdicts_are_withheld(bundle_copy: Path, photos: Path) -> None:
    calibrate(bundle_copy, [0.1] * 20)
    opened = Bundle.open(bundle_copy)
    write_bundle(bundle_copy, msgspec.structs.replace(opened.manifest, verification=()), opened.files())
    with Detector(bundle_copy) as detector:
        [row] = detector.detect(photos / "photo00.jpg")
        assert (row.verdict, row.reason) == ("uncalibrated", "not_verified")
        assert detector.caveat is not None
        assert f"run `mdmf verify {bundle_copy} --runtime onnxruntime`" in detector.caveat


def test_thresholds_hold_for_the_plan_of_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = planned(tiny_bundle, 4, tmp_path / "planned.mdmf").path
    calibrate(bundle, [0.1] * 20)
    image = synthetic_photo(1, 200, 200)
    rows = []
    for crops in (None, 4):
        with Detector(bundle, crops=crops) as detector:
            assert detector.caveat is None
            rows += timeless(detector.detect(image))
    assert rows[0] == rows[1]
    assert (rows[0].crop, rows[0].verdict == "uncalibrated") == ("grid 2x2", False)
    for crops, kind in ((1, "center"), (9, "grid 3x3")):
        with Detector(bundle, crops=crops) as detector:
            assert detector.caveat is not None
            assert f"crop plan (up to 4 an image), not for {crops}" in detector.caveat
            [row] = detector.detect(image)
        assert (row.crop, row.verdict, row.reason) == (kind, "uncalibrated", "other_crops")
        assert (row.p_value, row.threshold, row.size_group) == (None, None, None)


def test_rows_of_several_crops_do_not_depend_on_their_batch(tiny_bundle: Path, paths: list[Path]) -> None:
    large = np.random.default_rng(0).integers(0, 256, (2, 120, 200, 3), np.uint8)
    runs = []
    # An image of four crops is split over batches of one and three.
    for batch_size, threads in ((32, None), (1, 1), (3, 2), (7, 1)):
        with Detector(tiny_bundle, "onnxruntime", threads, batch_size=batch_size, crops=4) as detector:
            runs.append(timeless(detector.detect([*paths[:3], large[0], b"", paths[4], large[1]])))
    assert {row.crop for row in runs[0]} >= {"grid 2x2", None}
    for run in runs[1:]:
        assert run == runs[0]


def test_too_few_calibration_images_are_a_caveat(bundle_copy: Path, photos: Path) -> None:
    calibrate(bundle_copy, [0.0] * 5, fpr=0.01)
    with Detector(bundle_copy) as detector:
        assert detector.caveat is not None
        assert (
            "5 calibration images are too few for a false positive rate of 0.01: each size needs 99" in detector.caveat
        )
        [row] = detector.detect(photos / "photo00.jpg")
    assert (row.verdict, row.reason, row.threshold) == ("uncertain", "no_calibration_for_this_size", None)


def test_an_image_is_judged_by_the_calibration_of_its_size(bundle_copy: Path) -> None:
    """The calibration's images have 0.01 megapixels. The size is that of the whole image, not of its crop."""
    calibrate(bundle_copy, [0.0] * 20, bounds=[0.02])
    with Detector(bundle_copy) as detector:
        assert detector.caveat is None
        small, large = detector.detect([synthetic_photo(1, 100, 200), synthetic_photo(1, 101, 200)])
    assert (small.verdict, small.size_group, small.threshold) == ("generated", "up to 0.02 MP", 0.0)
    assert (large.verdict, large.reason, large.size_group, large.threshold, large.p_value) == (
        *("uncertain", "no_calibration_for_this_size", "above 0.02 MP"),
        *(None, None),
    )


def test_featureless_images_are_never_judged(bundle_copy: Path) -> None:
    """Each would be called generated by its score."""
    calibrate(bundle_copy, [0.0] * 20)
    names, images = zip(*featureless(42, seed=1, side=128), strict=True)
    with Detector(bundle_copy) as detector:
        rows = detector.detect(images)
        assert detector.detect(synthetic_photo(1, 100, 100))[0].verdict == "generated"
    judged = {name: row.evidence for name, row in zip(names, rows, strict=True) if row.reason != "featureless"}
    assert judged == {}
    assert {(row.verdict, row.p_value, row.threshold) for row in rows} == {("uncertain", None, None)}
    assert all(row.evidence < 0.25 for row in rows)  # type: ignore[operator]


def test_a_batch_is_one_reduction_however_many_crops_its_images_have(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = np.zeros((60, 60, 3), np.uint8), np.zeros((200, 200, 3), np.uint8)
    shapes: list[tuple[int, ...]] = []

    class Recording(CpuReduction):
        def __call__(self, signatures: np.ndarray, bank: Bank) -> Scores:
            shapes.append(signatures.shape[:2])
            return super().__call__(signatures, bank)

    monkeypatch.setattr(reductions, "CpuReduction", Recording)
    with Detector(tiny_bundle, batch_size=8, crops=3) as detector:
        rows = detector.detect([small, large, b"", small])
        assert shapes == [(5, 4)]
        assert [row.crop for row in rows] == ["center", "grid 1x3", None, "center"]
        assert rows[0].ms_mmd == rows[3].ms_mmd
        assert timeless(rows[1:2]) == [
            msgspec.structs.replace(row, uri="array:1") for row in timeless(detector.detect(large))
        ]


def test_rows_stream_before_the_sources_end(tiny_bundle: Path) -> None:
    def endless() -> object:
        while True:
            yield np.zeros((60, 60, 3), np.uint8)

    with Detector(tiny_bundle, batch_size=2) as detector:
        rows = detector.stream(endless())  # type: ignore[arg-type]
        assert [next(rows).uri for _ in range(5)] == [f"array:{n}" for n in range(5)]


def test_options_reach_the_pipeline_and_the_reduction(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr(
        detector_module,
        "extract_batches",
        lambda *_, **options: (b for b in asked.update(options) or ()),
    )
    threads: list[int | None] = []
    monkeypatch.setattr(reductions, "CpuReduction", threads.append)
    limits = ReadLimits(max_pixels=5)
    with Detector(tiny_bundle, threads=3, batch_size=5, crops=2, limits=limits) as detector:
        assert detector.detect([]) == []
    assert asked == {"batch_size": 5, "crops": 2, "workers": 3, "limits": limits, "frames": 10, "fused": None}
    assert threads == [3]


def test_an_extraction_comes_right_before_its_rows(tiny_bundle: Path, photos: Path) -> None:
    seen: list[Extraction] = []
    with Detector(tiny_bundle, "onnxruntime", batch_size=3) as detector:
        stream = detector.stream_by_source(sorted(photos.iterdir())[:7], on_extraction=seen.append)
        for n, [row] in enumerate(stream, 1):
            assert (len(seen), seen[-1].uri, seen[-1].sha256) == (n, row.uri, row.sha256)
            assert seen[-1].signatures is not None

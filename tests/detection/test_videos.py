"""Videos to rows: the mean of the frames, the same in any batch, in bounded memory, judged by videos alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("cv2")

from fakes.quadrants import CROP, Quadrants
from helpers.clips import LOSSLESS, frame, index_first, write_clip
from helpers.rows import timeless
from helpers.synthetic_photos import synthetic_photo
from jsonschema import Draft202012Validator
from PIL import Image

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.calibration import Pair, Scored, VideoGroup
from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection import videos as videos_module
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.outputs.heatmaps import HeatmapFolder, HeatmapOptions
from mdmf_deploy.detection.pipeline import extract
from mdmf_deploy.detection.rows import json_line
from mdmf_deploy.detection.schema import row_schema
from mdmf_deploy.detection.sources import Named
from mdmf_deploy.detection.videos import VideoRoom
from mdmf_deploy.errors import UsageError
from mdmf_deploy.images.crops import crops, normalise
from mdmf_deploy.images.isolation.owners import Ended
from mdmf_deploy.tasks.calibrate import Rates, calibrate, write_calibration

SIZE = (150, 130)
VALIDATOR = Draft202012Validator(row_schema())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mkv", 20, LOSSLESS, SIZE)


@pytest.fixture(scope="module")
def clips(clip: Path) -> list[Path]:
    """Three good clips, one cut so that frames are missing, and one without its index."""
    folder = clip.parent
    second = write_clip(folder / "second.mp4", 12, "mp4v", (64, 90))
    third = write_clip(folder / "third.avi", 9, "MJPG", (90, 64))
    most, none = folder / "most.mp4", folder / "none.mp4"
    data = write_clip(folder / "whole.mp4", 30, "mp4v", SIZE).read_bytes()
    most.write_bytes(index_first(data)[: len(data) * 3 // 4])
    none.write_bytes(data[: len(data) // 2])
    return [clip, second, most, third, none]


def gpu_free(bundle: Path, **options: object) -> Detector:
    return Detector(bundle, "onnxruntime", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 3])
def test_the_score_of_a_video_is_the_mean_of_its_frames(tiny_bundle: Path, clip: Path, count: int) -> None:
    images = [frame(n, *SIZE) for n in range(2, 20, 4)]
    with gpu_free(tiny_bundle, crops=count, frames=5) as detector:
        [row] = detector.detect(clip)
        frames = detector.detect(clip, each_frame=True)
        alone = detector.detect(images)
    assert (row.status, row.format, row.width, row.height, row.frames) == ("ok", "mkv", *SIZE, 5)
    assert row.crop == alone[0].crop
    assert row.sha256 == hashlib.sha256(clip.read_bytes()).hexdigest()
    scores = [one.score or 0.0 for one in alone]
    assert [one.score for one in frames] == pytest.approx(scores, abs=1e-7)
    assert row.score == pytest.approx(np.mean(scores), abs=1e-7)
    assert row.evidence == pytest.approx(np.mean([one.evidence for one in alone]), abs=1e-12)
    low, high = int(np.argmin(scores)), int(np.argmax(scores))
    assert (row.lowest_score, row.lowest_time) == (frames[low].score, frames[low].frame_time)
    assert (row.highest_score, row.highest_time) == (frames[high].score, frames[high].frame_time)
    assert row.contributions == frames[high].contributions == pytest.approx(alone[high].contributions, abs=1e-5)


def test_a_row_for_each_frame(tiny_bundle: Path, clip: Path, photos: Path) -> None:
    photo = min(photos.iterdir())
    with gpu_free(tiny_bundle, frames=4) as detector:
        groups = list(detector.stream_by_source([clip, photo], each_frame=True))
        [whole, _] = detector.detect([clip, photo])
    frames, [row] = groups
    assert [one.uri for one in frames] == [f"{clip.as_posix()}#t={n / 25:.3f}" for n in (2, 7, 12, 17)]
    assert [one.frame_time for one in frames] == pytest.approx([n / 25 for n in (2, 7, 12, 17)])
    assert {(one.verdict, one.reason, one.frames, one.sha256) for one in frames} == {
        ("uncalibrated", "no_thresholds", None, whole.sha256)
    }
    assert np.mean([one.score for one in frames]) == pytest.approx(whole.score, rel=1e-12)
    for one in frames:
        assert np.mean(one.contributions) == pytest.approx(one.score, rel=1e-12)
    assert (row.uri, row.frame_time) == (photo.as_posix(), None)


def test_rows_do_not_depend_on_batches_and_threads(tiny_bundle: Path, clips: list[Path], photos: Path) -> None:
    images = sorted(photos.iterdir())[:4]
    sources = [images[0], clips[0], images[1], clips[1], clips[2], clips[3], images[2], clips[4], images[3]]
    runs = []
    for batch_size, threads in ((1, 1), (5, 2), (8, 4), (64, 2)):
        with gpu_free(tiny_bundle, threads=threads, batch_size=batch_size, crops=2, frames=6) as detector:
            runs.append(timeless(detector.detect(sources)))
    assert all(run == runs[0] for run in runs)
    assert [row.uri for row in runs[0]] == [path.as_posix() for path in sources]
    found = {Path(row.uri).name: (row.frames, row.notes, row.error_code) for row in runs[0] if row.format != "jpeg"}
    assert found["clip.mkv"] == found["second.mp4"] == found["third.avi"] == (6, None, None)
    assert found["most.mp4"][1:] == ("frames_missing", None)
    assert found["none.mp4"] == (None, None, "truncated")


def test_bytes_files_and_strange_names_are_videos_too(tiny_bundle: Path, clip: Path, tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"concat:%03d\xff.jpg")
    strange.write_bytes(clip.read_bytes())
    before = set(tmp_path.iterdir())
    with gpu_free(tiny_bundle) as detector, clip.open("rb") as file:
        [wanted] = detector.detect(clip)
        rows = detector.detect([clip.read_bytes(), file, Named(str(clip), "a"), strange, io.BytesIO(clip.read_bytes())])
    assert [row.uri for row in rows] == ["bytes:0", clip.as_posix(), "a", rows[3].uri, "file:4"]
    for row in rows:
        assert timeless([msgspec.structs.replace(row, uri=wanted.uri)]) == timeless([wanted])
    assert set(tmp_path.iterdir()) == before


def test_frames_are_bounded(tiny_bundle: Path) -> None:
    for count in (0, 101):
        with pytest.raises(UsageError, match="1 to 100"):
            gpu_free(tiny_bundle, frames=count)


def test_videos_are_refused_where_images_alone_are_read(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [refused] = extract([clip], Quadrants(), Preprocessing(crop=CROP))
    assert refused.error is not None
    assert (refused.error.code, refused.signatures) == ("unsupported_format", None)
    assert refused.sha256 == hashlib.sha256(clip.read_bytes()).hexdigest()
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    [without] = extract([clip], Quadrants(), Preprocessing(crop=CROP), frames=10)
    assert without.error is not None
    assert without.error.code == "unsupported_format"


def test_the_engine_gets_the_crops_of_every_frame_in_parts(clip: Path) -> None:
    engine = Quadrants()
    preprocessing = Preprocessing(crop=CROP)
    [found] = extract([clip], engine, preprocessing, batch_size=4, crops=3, frames=5)
    squares = np.concatenate([crops(frame(n, *SIZE), CROP, 3).pixels for n in range(2, 20, 4)])
    np.testing.assert_array_equal(found.signatures, Quadrants()(normalise(squares, preprocessing)))
    assert engine.batches == [4, 4, 4, 3]


def test_waiting_videos_hold_no_more_than_their_room() -> None:
    """Whatever the order in which threads ask, the next source always gets in."""
    room, most, held, peak = VideoRoom(10), 10, 0, 0
    lock = threading.Lock()
    order = [3, 1, 4, 0, 2, 6, 5, 7]
    done = [threading.Event() for _ in order]

    def prepare(n: int) -> None:
        nonlocal held, peak
        room.hold(n, 6)
        with lock:
            held += 6
            peak = max(peak, held)
        done[n].set()

    threads = [threading.Thread(target=prepare, args=(n,)) for n in order]
    for thread in threads:
        thread.start()
    for n in range(len(order)):
        assert done[n].wait(10)
        with lock:
            held -= 6
        room.passed()
    for thread in threads:
        thread.join()
    # One that was let in early, and the next.
    assert peak <= most + 6


def test_nobody_waits_for_a_closed_room() -> None:
    room = VideoRoom(1)
    ended: list[Ended] = []

    def wait() -> None:
        try:
            room.hold(5, 2)
        except Ended as error:
            ended.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    room.close()
    waiting.join(10)
    assert len(ended) == 1
    with pytest.raises(Ended):
        room.hold(0, 1)


def test_many_videos_go_through_a_small_room(
    tiny_bundle: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos_module.VideoRoom.__init__, "__defaults__", (1,))
    sources = [clips[n % 3] for n in range(9)]
    with gpu_free(tiny_bundle, threads=4, frames=3) as detector:
        rows = detector.detect(sources)
    assert [row.uri for row in rows] == [path.as_posix() for path in sources]


def test_a_heat_map_shows_the_highest_frame(tiny_bundle: Path, clip: Path, tmp_path: Path) -> None:
    with gpu_free(tiny_bundle, frames=5) as detector:
        [row] = detector.detect(clip)
        frames = detector.detect(clip, each_frame=True)
        folder = HeatmapFolder(tmp_path, HeatmapOptions.of(detector.bundle, "png"))
    page = folder.write(row, clip)
    highest = max(frames, key=lambda one: one.score or 0.0)
    each = folder.write(highest, clip)
    assert page is not None
    assert each is not None
    left, top = 20, 88  # of the picture on the page
    first, second = (np.asarray(Image.open(path)).astype(int) for path in (page, each))
    np.testing.assert_array_equal(first[top : top + 448], second[top : top + 448])
    # Outside the crop, the picture is the frame itself, enlarged.
    number = round((highest.frame_time or 0.0) * 25)
    enlarged = np.asarray(Image.fromarray(frame(number, *SIZE)).resize((517, 448), Image.Resampling.BILINEAR))
    rim = np.s_[4:60, 4:500]
    assert np.abs(first[top : top + 448, left : left + 517][rim] - enlarged[rim].astype(int)).max() <= 1


def with_videos(bundle: Path, scores: list[float], frames: int, fpr: float = 0.3) -> None:
    """Give a bundle thresholds for videos alone."""
    opened = Bundle.open(bundle)
    scored = [Scored(f"{n:064}", score, 1, 0.9) for n, score in enumerate(scores)]
    group = VideoGroup.of(scored, frames, [fpr], fpr, Pair("onnxruntime", "fp32"))
    calibration = opened.calibration
    assert calibration is not None
    write_calibration(opened, msgspec.structs.replace(calibration, videos=group), bundle)


def test_videos_alone_judge_videos(bundle_copy: Path, clip: Path, photos: Path) -> None:
    bundle = bundle_copy
    images = sorted(photos.iterdir())
    opened = Bundle.open(bundle)
    with gpu_free(bundle) as detector:
        report = calibrate(opened, detector.engine, images, Rates([0.3], 0.3, ()))
    write_calibration(opened, report.calibration, bundle)
    with gpu_free(bundle) as detector:
        [row] = detector.detect(clip)
        each = detector.detect(clip, each_frame=True)
        judged = detector.detect(images)
    assert (row.verdict, row.reason, row.size_group) == ("uncalibrated", "no_video_thresholds", None)
    assert {(one.verdict, one.reason) for one in each} == {("uncalibrated", "one_frame")}
    score = row.score or 0.0
    for other_score, verdict, p in ((score + 1.0, "real", 1.0), (score / 2.0, "generated", 0.25)):
        with_videos(bundle, [other_score] * 3, 10)
        with gpu_free(bundle) as detector:
            [found] = detector.detect(clip)
            assert [one.verdict for one in detector.detect(images)] == [one.verdict for one in judged]
        with gpu_free(bundle, frames=9) as detector:
            [other] = detector.detect(clip)
        assert (found.verdict, found.p_value, found.size_group) == (verdict, p, "videos")
        assert (other.verdict, other.reason) == ("uncalibrated", "other_frames")
        for one in (row, *each, found, other):
            VALIDATOR.validate(json.loads(json_line(one)))


def test_a_video_without_texture_is_uncertain(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.clips.frame", lambda n, width, height: np.full((height, width, 3), 90 + n, np.uint8))
    flat = write_clip(tmp_path / "flat.mkv", 12, LOSSLESS, SIZE)
    photo = tmp_path / "photo.png"
    Image.fromarray(synthetic_photo(5, 80, 80)).save(photo)
    opened = Bundle.open(bundle_copy)
    with gpu_free(bundle_copy) as detector:
        report = calibrate(opened, detector.engine, [photo], Rates([0.3], 0.3, ()))
    write_calibration(opened, report.calibration, bundle_copy)
    with_videos(bundle_copy, [0.1, 0.2, 0.3], 10)
    with gpu_free(bundle_copy) as detector:
        [row] = detector.detect(flat)
    assert (row.verdict, row.reason, row.evidence) == ("uncertain", "featureless", 0.0)

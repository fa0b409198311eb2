"""Videos on the command line: detect, calibrate and inspect know them, and the commands for photographs refuse them."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")

from helpers.clips import write_clip
from helpers.mdmf import mdmf

from mdmf_deploy.bundle.bundle import Bundle


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five clips that differ."""
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"clip{n}.mp4", 20 + n, size=(90 + 2 * n, 80)) for n in range(5)]


@pytest.fixture(scope="module")
def judged(tiny_bundle: Path, clips: list[Path], photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with thresholds for photographs at 0.1, and for videos at 0.25."""
    bundle = tmp_path_factory.mktemp("judged") / "b.mdmf"
    assert mdmf("calibrate", tiny_bundle, photos, "--fpr", 0.1, "-o", bundle).exit_code == 0
    result = mdmf("calibrate", bundle, *clips[:3], "--fpr", 0.25, "--frames", 4, "--force")
    assert result.exit_code == 0, result.stderr
    return bundle


def rows(*arguments: object, code: int = 0) -> list[dict[str, object]]:
    result = mdmf("detect", *arguments, "--json")
    assert result.exit_code == code, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_row_a_video_and_one_a_frame(judged: Path, clips: list[Path], photos: Path) -> None:
    photo = min(photos.iterdir())
    whole = rows(clips[3], photo, clips[4], "--bundle", judged, "--frames", 4)
    assert [row["frames"] for row in whole] == [4, None, 4]
    assert [row["size_group"] for row in whole] == ["videos", "up to 0.5 MP", "videos"]
    assert {row["reason"] for row in whole} <= {None, "featureless", "borderline"}
    each = rows(clips[3], photo, "--bundle", judged, "--frames", 4, "--each-frame")
    assert len(each) == 5
    assert np.mean([row["score"] for row in each[:4]]) == pytest.approx(whole[0]["score"], rel=1e-12)
    assert {(row["verdict"], row["reason"]) for row in each[:4]} == {("uncalibrated", "one_frame")}
    assert each[4]["score"] == whole[1]["score"]
    result = mdmf("detect", clips[3], photo, "--bundle", judged, "--frames", 4, "--each-frame")
    assert "2 images, 5 rows: 4 uncalibrated" in result.stderr


def test_ten_frames_by_default(judged: Path, clips: list[Path]) -> None:
    [row] = rows(clips[0], "--bundle", judged)
    assert (row["frames"], row["verdict"], row["reason"]) == (10, "uncalibrated", "other_frames")
    for count in (0, 101):
        assert mdmf("detect", clips[0], "--bundle", judged, "--frames", count).exit_code == 2


def test_a_gate_without_thresholds_for_videos_does_not_pass(judged: Path, clips: list[Path]) -> None:
    assert mdmf("detect", clips[3], "--bundle", judged, "--frames", 4, "--fail-on", "generated").exit_code in (0, 1)
    for options in (["--frames", 5], ["--frames", 4, "--each-frame"]):
        result = mdmf("detect", clips[3], "--bundle", judged, *options, "--fail-on", "generated")
        assert result.exit_code == 2
        assert "cannot be judged" in result.stderr


def test_heat_maps_of_videos_and_of_frames(judged: Path, clips: list[Path], tmp_path: Path) -> None:
    mdmf("detect", clips[0], clips[1], "--bundle", judged, "--frames", 3, "--heatmaps", tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["clip0.heatmap.jpg", "clip1.heatmap.jpg"]
    result = mdmf("detect", clips[0], "--bundle", judged, "--frames", 3, "--each-frame", "--heatmaps", tmp_path / "b")
    assert len(list((tmp_path / "b").iterdir())) == 3
    assert "no heat map" not in result.stderr


def test_calibrating_on_videos_keeps_the_photographs(judged: Path, clips: list[Path], tmp_path: Path) -> None:
    before = Bundle.open(judged).calibration
    target = tmp_path / "new.mdmf"
    result = mdmf("calibrate", judged, *clips, "--fpr", 0.25, "--frames", 22, "-o", target, "--json")
    printed = json.loads(result.stdout)
    assert result.exit_code == 0
    # Clips of 20 and 21 frames have fewer than 22.
    assert printed["short"] == [path.as_posix() for path in clips[:2]]
    assert (printed["videos"]["frames"], printed["videos"]["images"], printed["images"]) == (22, 3, 12)
    after = Bundle.open(target).calibration
    assert after.groups == before.groups
    assert after.videos.video_sha256 != before.videos.video_sha256


def test_too_few_videos_write_nothing(judged: Path, clips: list[Path], tmp_path: Path) -> None:
    target = Path(shutil.copytree(judged, tmp_path / "b.mdmf"))
    for options in (["-o", tmp_path / "new.mdmf"], ["--force"]):
        result = mdmf("calibrate", target, *clips, "--fpr", 0.01, *options)
        assert result.exit_code == 2
        assert "5 calibration videos are too few" in result.stderr
    assert Bundle.open(target).calibration_id == Bundle.open(judged).calibration_id


def test_tables_show_the_videos(judged: Path, clips: list[Path], tmp_path: Path) -> None:
    shown = mdmf("inspect", judged).stdout
    printed = mdmf("calibrate", judged, *clips[:3], "--fpr", 0.25, "-o", tmp_path / "new.mdmf").stdout
    assert printed.startswith("3 videos; left out")
    for text in (shown, printed):
        [line] = [line for line in text.splitlines() if line.strip().startswith("videos")]
        assert line.split()[1:3] == ["3", "0.25"]
    assert "3 videos of 4 frames each" in " ".join(shown.split())
    facts = json.loads(mdmf("inspect", judged, "--json").stdout)
    assert (facts["calibration"]["videos"]["frames"], facts["calibration"]["images"]) == (4, 12)


def test_banks_take_no_videos(tiny_bundle: Path, clips: list[Path], photos: Path, tmp_path: Path) -> None:
    images = sorted(photos.iterdir())
    result = mdmf("bank", "build", tiny_bundle, *images, clips[0], "-o", tmp_path / "new.mdmf")
    assert result.exit_code == 3
    assert "(unsupported_format): this is a video" in result.stderr
    sources = {source.sha256 for source in Bundle.open(tmp_path / "new.mdmf").bank.sources}
    assert len(sources) == len(images)


def test_evaluate_judges_videos_apart_and_conditions_leave_them_out(
    judged: Path, clips: list[Path], photos: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for n, folder in enumerate(("real", "generated/one")):
        (data / folder).mkdir(parents=True)
        for image in photos.iterdir():
            # Bytes after the image make it another file than that of the calibration.
            (data / folder / image.name).write_bytes(image.read_bytes() + bytes(n + 1))
    # One under an image's name, and one that holds no frame.
    shutil.copy(clips[3], data / "real/clip.jpg")
    shutil.copy(clips[4], data / "generated/one")
    whole = clips[4].read_bytes()
    (data / "real/cut.mp4").write_bytes(whole[: len(whole) // 3])
    conditions = ("--condition", "as is", "--condition", "jpeg:90")
    options = ("--bundle", judged, "--frames", 4, *conditions, "--json", "-o", tmp_path / "r.jsonl")
    result = mdmf("evaluate", data, *options)
    assert result.exit_code == 3, result.stderr
    assert "left out of 'jpeg:90', because conditions change images alone: 3 videos" in result.stderr
    first, changed = json.loads(result.stdout)["tables"]
    assert [name.rpartition("/")[2] for name in first["unreadable"]] == ["cut.mp4"]
    assert (first["real_images"], first["kinds"]["videos"]["real_images"]) == (13, 1)
    assert (first["kinds"]["videos"]["generated_images"], first["sizes"]["videos"]["generated_images"]) == (1, 1)
    assert (changed["real_images"], changed["kinds"], changed["unreadable"]) == (12, {}, [])


def test_detect_says_what_gives_videos_verdicts(
    tiny_bundle: Path, clips: list[Path], photos: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "b.mdmf"
    assert mdmf("calibrate", tiny_bundle, photos, "--fpr", 0.1, "-o", bundle).exit_code == 0
    result = mdmf("detect", *clips[:2], "--frames", 4, "--bundle", bundle)
    assert "2 videos have no verdict, because this bundle has no thresholds for videos; run mdmf" in result.stderr
    [line] = [line for line in result.stderr.splitlines() if "no thresholds for videos" in line]
    command, named, videos, option, _ = shlex.split(line.rpartition("run mdmf ")[2])
    assert (videos, option) == ("REAL_VIDEOS", "-o")
    new = tmp_path / "new.mdmf"
    again = mdmf(command, named, *clips, option, new, "--fpr", 0.25, "--frames", 4)
    assert again.exit_code == 0, again.stderr
    result = mdmf("detect", *clips[:2], "--frames", 4, "--bundle", new)
    assert "no thresholds for videos" not in result.stderr

"""Videos: the right frames, upright, exact to the pixel, and one error or note for each thing that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")

from helpers.clips import LOSSLESS, RATE, at_rates, cv2, frame, index_first, rotated, without_pictures, write_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images import crops, video
from mdmf_deploy.images.isolation import video as isolated
from mdmf_deploy.images.limits import DEFAULT_LIMITS, ReadLimits
from mdmf_deploy.images.magic import video_format
from mdmf_deploy.images.video import SampledVideo, VideoPlan
from mdmf_deploy.images.video_tracks import outline

SIZE = 28


def sampled(
    path: Path, frames: int = 10, count: int = 1, limits: ReadLimits = DEFAULT_LIMITS, size: int = SIZE
) -> SampledVideo:
    format = video_format(path.read_bytes()[:64])
    assert format is not None
    return video.sample(str(path), format, VideoPlan(frames, size, count), limits)


def code(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> str:
    with pytest.raises(ImageError) as caught:
        sampled(path, limits=limits)
    assert "\n" not in str(caught.value)
    return caught.value.code


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "a.mkv", codec=LOSSLESS)


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "a.mp4")


@pytest.fixture
def changed(mp4: Path, tmp_path: Path) -> Callable[[bytes], Path]:
    """Write bytes as a file."""

    def write(data: bytes) -> Path:
        path = tmp_path / "changed"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("frames", [1, 3, 10])
def test_frames_lie_in_the_middle_of_equal_parts_and_are_exact(lossless: Path, frames: int, count: int) -> None:
    found = sampled(lossless, frames, count)
    middles = [int((part + 0.5) * 30 / frames) for part in range(frames)]
    assert found.times == pytest.approx([n / RATE for n in middles], abs=2e-3)
    assert (found.width, found.height, found.format, found.notes) == (64, 48, "mkv", ())
    for n, pixels in zip(middles, found.crops, strict=True):
        wanted = crops.crops(frame(n), SIZE, count)
        np.testing.assert_array_equal(pixels, wanted.pixels)
        assert found.crop == wanted.kind


@pytest.mark.parametrize("size", [28, 48, 56, 224])
def test_crops_are_of_the_kind_of_an_image_of_that_size(lossless: Path, size: int) -> None:
    found = sampled(lossless, 1, 2, size=size)
    wanted = crops.crops(frame(15), size, 2)
    assert found.crop == wanted.kind
    np.testing.assert_array_equal(found.crops[0], wanted.pixels)


@settings(deadline=None, max_examples=15)
@given(frames=st.integers(1, 100))
def test_a_frame_counts_once(lossless: Path, frames: int) -> None:
    found = sampled(lossless, frames)
    assert len(found.times) == min(frames, 30)
    assert list(found.times) == sorted(set(found.times))
    assert found.notes == ()


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mp4v"), ("a.webm", "VP80"), ("a.avi", "MJPG")])
def test_seeking_gives_the_frames_of_decoding_all(
    name: str, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / name, 80, codec)
    wanted = sampled(path, 7)
    monkeypatch.setattr(video, "SEEK_GAP", 0)
    found = sampled(path, 7)
    assert found.times == wanted.times == pytest.approx([n / RATE for n in (5, 17, 28, 40, 51, 62, 74)], abs=1e-3)
    np.testing.assert_array_equal(found.crops, wanted.crops)


@pytest.mark.parametrize(
    ("name", "codec", "format"),
    [
        *(("a.mp4", "mp4v", "mp4"), ("a.mov", "mp4v", "mov"), ("a.webm", "VP80", "webm")),
        *(("a.mkv", "mp4v", "mkv"), ("a.avi", "MJPG", "avi")),
    ],
)
def test_formats_are_told_by_content(name: str, codec: str, format: str, tmp_path: Path) -> None:
    path = write_clip(tmp_path / name, 10, codec).rename(tmp_path / "photo.jpg")
    found = sampled(path, 5)
    assert (found.format, len(found.times)) == (format, 5)
    whole = outline(str(path), format)
    assert (whole.whole, whole.pictures, len(whole.kinds)) == (True, True, 1)
    path.write_bytes(path.read_bytes()[:-9])
    assert not outline(str(path), format).whole


@pytest.mark.parametrize(("degrees", "turns"), [(90, 3), (180, 2), (270, 1)])
def test_rotation_is_applied_once(degrees: int, turns: int, mp4: Path, changed: Callable[[bytes], Path]) -> None:
    plain, found = (sampled(path, 3, size=40) for path in (mp4, changed(rotated(mp4.read_bytes(), degrees))))
    assert (found.width, found.height) == ((48, 64) if degrees != 180 else (64, 48))
    for upright, turned in zip(plain.crops, found.crops, strict=True):
        np.testing.assert_array_equal(turned[0], np.rot90(upright[0], turns))


def test_a_varying_rate_is_sampled_evenly_in_time(mp4: Path, changed: Callable[[bytes], Path]) -> None:
    """The first 10 frames last five times as long as the others, so they get 50 of the 70 units of time."""
    found = sampled(changed(at_rates(mp4.read_bytes(), [(10, 5), (20, 1)])), 7)
    starts = np.array([*range(0, 50, 5), *range(50, 70)]) / RATE
    assert all(np.isclose(starts, seconds, atol=1e-3).any() for seconds in found.times)
    # Every part of ten units has one frame. It begins in the part, or its part is within the frame before it.
    assert [int(seconds * RATE / 10 + 1e-6) for seconds in found.times] == list(range(7))


def test_a_frame_that_is_shown_for_long_counts_once(mp4: Path, changed: Callable[[bytes], Path]) -> None:
    found = sampled(changed(at_rates(mp4.read_bytes(), [(1, 40), (29, 1)])))
    assert found.times[0] == pytest.approx(40 / RATE, abs=1e-3)
    assert list(found.times) == sorted(set(found.times))
    assert (1 < len(found.times) < 10, found.notes) == (True, ())


def test_deep_pixels_become_8_bit(tmp_path: Path) -> None:
    module = cv2()
    levels = np.random.default_rng(0).integers(0, 1 << 16, (48, 64), dtype=np.uint16)
    options = [module.VIDEOWRITER_PROP_DEPTH, module.CV_16U, module.VIDEOWRITER_PROP_IS_COLOR, 0]
    path = str(tmp_path / "deep.mkv")
    writer = module.VideoWriter(path, module.CAP_FFMPEG, module.VideoWriter.fourcc(*"FFV1"), RATE, (64, 48), options)
    for _ in range(4):
        writer.write(levels)
    writer.release()
    [[pixels]] = sampled(Path(path), 1, size=48).crops
    assert np.abs(pixels.astype(int) - (levels[:, 8:56] >> 8)[..., None]).max() <= 1


def test_a_cut_clip_gives_the_frames_that_are_there(mp4: Path, changed: Callable[[bytes], Path]) -> None:
    data = index_first(mp4.read_bytes())
    assert sampled(changed(data)).times == sampled(mp4).times
    most = sampled(changed(data[: len(data) * 3 // 4]))
    assert most.notes == ("frames_missing",)
    assert 5 <= len(most.times) < 10
    assert most.times == sampled(mp4).times[: len(most.times)]
    assert code(changed(data[: len(data) // 3])) == "truncated"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_without_its_index_a_clip_is_truncated(share: float, mp4: Path, changed: Callable[[bytes], Path]) -> None:
    data = mp4.read_bytes()
    assert code(changed(data[: int(share * len(data))])) == "truncated"


def test_sound_alone_is_no_video(mp4: Path, tmp_path: Path, changed: Callable[[bytes], Path]) -> None:
    assert code(changed(without_pictures(mp4.read_bytes()))) == "unsupported_format"
    webm = write_clip(tmp_path / "a.webm", 3, "VP80").read_bytes()
    assert code(changed(webm.replace(b"\x83\x81\x01", b"\x83\x81\x02"))) == "unsupported_format"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_clip_without_frames_is_an_error(name: str, tmp_path: Path) -> None:
    path = write_clip(tmp_path / name, 0, "MJPG" if name == "a.avi" else "mp4v")
    assert code(path) in ("corrupt", "truncated")


def test_a_recording_that_does_not_say_how_long_it_is(lossless: Path, changed: Callable[[bytes], Path]) -> None:
    """A browser writes such files: the element of the duration (RFC 9559, section 5.1.2.10) is missing."""
    data = lossless.read_bytes()
    assert data.count(b"\x44\x89\x88") == 1
    unsaid = changed(data.replace(b"\x44\x89\x88", b"\xec\x4a\x88").replace(b"DURATION", b"DXRATION"))
    assert sampled(unsaid).times == sampled(lossless).times


def test_limits_hold(lossless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code(lossless, ReadLimits(max_pixels=64 * 48 - 1)) == "too_many_pixels"
    assert video.seconds_allowed(1, ReadLimits(max_seconds=2)) == 60
    assert video.seconds_allowed(100, ReadLimits(max_seconds=2)) == 200
    monkeypatch.setattr(video, "seconds_allowed", lambda *_: -1.0)
    assert code(lossless) == "too_slow"


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_damaged_clip_costs_an_error_and_no_more(lossless: Path, mp4: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([lossless, mp4]))
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        damaged[data.draw(st.integers(12, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    copy = path.with_name("damaged")
    copy.write_bytes(damaged[: data.draw(st.integers(64, len(damaged)))])
    format = "mp4" if path is mp4 else "mkv"
    outline(str(copy), format)
    try:
        found = isolated.sample(str(copy), format, VideoPlan(10, SIZE, 1), DEFAULT_LIMITS)
    except ImageError as error:
        assert error.code not in ("too_slow", "unreadable")  # noqa: PT017 (any of the others is right)
    else:
        assert 1 <= len(found.times) == len(found.crops) <= 10


def test_a_child_gives_the_same_pixels(lossless: Path, mp4: Path, changed: Callable[[bytes], Path]) -> None:
    plan = VideoPlan(4, SIZE, 2)
    for path in (lossless, mp4):
        wanted, found = sampled(path, 4, 2), isolated.sample(str(path), path.suffix[1:], plan, DEFAULT_LIMITS)
        np.testing.assert_array_equal(found.crops, wanted.crops)
        assert (found.times, found.crop, found.width, found.height) == (wanted.times, wanted.crop, 64, 48)
    for seconds, pixels in zip(wanted.times, wanted.crops, strict=True):
        whole = isolated.frame_at(str(mp4), "mp4", seconds, DEFAULT_LIMITS)
        np.testing.assert_array_equal(crops.crops(whole.pixels, SIZE, 2).pixels, pixels)
    with pytest.raises(ImageError) as caught:
        isolated.sample(str(changed(mp4.read_bytes()[:900])), "mp4", plan, DEFAULT_LIMITS)
    assert caught.value.code == "truncated"


def test_no_message_reaches_the_terminal(
    mp4: Path, changed: Callable[[bytes], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(index_first(mp4.read_bytes()))
    data[len(data) // 2 :: 7] = bytes(len(data[len(data) // 2 :: 7]))
    for bad in (bytes(data), mp4.read_bytes()[:2000], without_pictures(mp4.read_bytes())):
        try:
            isolated.sample(str(changed(bad)), "mp4", VideoPlan(10, SIZE, 1), DEFAULT_LIMITS)
        except ImageError as error:
            assert error.code in ("truncated", "corrupt", "unsupported_format")  # noqa: PT017 (either is right)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_clip_always_has_the_same_pixels(tmp_path: Path) -> None:
    """Several threads of FFmpeg would conceal damage in an order that changes from run to run."""
    whole = write_clip(tmp_path / "whole.mp4", 40, size=(160, 120)).read_bytes()
    start, end = whole.index(b"mdat") + 8, whole.rindex(b"moov") - 8
    plan = VideoPlan(10, 64, 2)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole)
        for at in rng.integers(start + (end - start) // 4, end, 12):
            damaged[at] ^= int(rng.integers(1, 256))
        path = tmp_path / f"damaged{seed}.mp4"
        path.write_bytes(bytes(damaged))
        first, *others = (video.sample(str(path), "mp4", plan, DEFAULT_LIMITS) for _ in range(4))
        for other in others:
            assert other.times == first.times
            np.testing.assert_array_equal(other.crops, first.crops)

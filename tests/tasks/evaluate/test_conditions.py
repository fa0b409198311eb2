"""Conditions."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats

from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.evaluate.conditions import Condition, Unencodable

LEVELS = [124, 128, 91, 91, 96, 96, 107, 121, 105, 125, 90, 126]
UNKNOWN = [
    *("", "jpeg", "jpeg:0", "jpeg:101", "jpeg:7.5", "resize:0", "resize:9", "jpeg:75,sharpen:2", "jpeg:75,"),
    *("blur:10.5", "blur:-1", "noise:1.5", "noise:x", "webp:0", "webp:101", "webp:80.5"),
]


def changed(condition: str, path: Path) -> NDArray[np.uint8]:
    source = Condition.parse(condition).source(path)
    assert isinstance(source, np.ndarray)
    assert source.dtype == np.uint8
    return source


def random_image(path: Path, height: int = 60, width: int = 47) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def grey(path: Path, level: int, side: int = 128) -> NDArray[np.uint8]:
    pixels = np.full((side, side, 3), level, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize("text", UNKNOWN)
def test_unknown_conditions_are_errors(text: str) -> None:
    with pytest.raises(UsageError, match="expected 'as is', jpeg:QUALITY") as raised:
        Condition.parse(text)
    assert all(f"{name}:" in str(raised.value) for name in ("jpeg", "webp", "resize", "blur", "noise"))
    assert len(str(raised.value).splitlines()) == 1


def test_a_condition_changes_the_image_step_by_step(photos: Path) -> None:
    path = photos / "photo01.png"
    original = np.asarray(Image.open(path))
    assert Condition.parse("as is").source(path) == path
    halved = Condition.parse("resize:0.5").source(path)
    assert isinstance(halved, np.ndarray)
    assert halved.shape == (original.shape[0] // 2, original.shape[1] // 2, 3)
    data = Condition.parse("jpeg:75").source(path)
    assert isinstance(data, bytes)
    expected = io.BytesIO()
    Image.fromarray(original).save(expected, "JPEG", quality=75, subsampling=2)
    assert data == expected.getvalue()
    both = Condition.parse("resize:0.5, jpeg:75").source(path)
    assert isinstance(both, bytes)
    assert Image.open(io.BytesIO(both)).size == (halved.shape[1], halved.shape[0])
    last = Condition.parse("jpeg:10,resize:1").source(path)
    assert isinstance(last, np.ndarray)
    assert not np.array_equal(last, original)


def test_two_jpegs_are_the_second_made_of_the_first(photos: Path) -> None:
    path = photos / "photo01.png"
    first = Condition.parse("jpeg:40").source(path)
    assert isinstance(first, bytes)
    expected = io.BytesIO()
    Image.open(io.BytesIO(first)).save(expected, "JPEG", quality=90, subsampling=2)
    assert Condition.parse("jpeg:40,jpeg:90").source(path) == expected.getvalue()


def test_webp_is_what_pillow_writes(photos: Path) -> None:
    path = photos / "photo01.png"
    data = Condition.parse("webp:40").source(path)
    expected = io.BytesIO()
    Image.open(path).convert("RGB").save(expected, "WEBP", quality=40)
    assert data == expected.getvalue()


@pytest.mark.parametrize("sigma", [0.3, 1, 2.5, 10])
def test_blur_is_scipys_gaussian_filter(tmp_path: Path, sigma: float) -> None:
    """At sigma 10 the kernel reaches 40 pixels, beyond the image's 47 columns."""
    pixels = random_image(tmp_path / "x.png")
    expected = ndimage.gaussian_filter(pixels.astype(np.float64), (sigma, sigma, 0))
    difference = changed(f"blur:{sigma}", tmp_path / "x.png") - np.rint(expected)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 1e-3  # sums that end in one half


@pytest.mark.parametrize("step", ["blur", "noise"])
def test_an_amount_of_nothing_changes_no_pixel(tmp_path: Path, step: str) -> None:
    pixels = random_image(tmp_path / "x.png")
    assert np.array_equal(changed(f"{step}:0", tmp_path / "x.png"), pixels)


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_noise_is_gaussian_with_the_std_asked_for(tmp_path: Path, std: float) -> None:
    grey(tmp_path / "x.png", 128)
    added = (changed(f"noise:{std}", tmp_path / "x.png") - 128.0) / 255
    assert added.std() == pytest.approx(std, rel=0.02)
    # Half a level more than the values' own spread, because they were rounded.
    assert stats.kstest(added.ravel(), stats.norm(0, std).cdf).statistic < 0.01 + 0.5 / (255 * std)
    assert np.abs(np.corrcoef(added.reshape(-1, 3).T) - np.eye(3)).max() < 0.03


def test_noise_stays_within_the_pixels_range(tmp_path: Path) -> None:
    for level, side in ((0, 0), (255, 255)):
        grey(tmp_path / "x.png", level)
        noisy = changed("noise:0.2", tmp_path / "x.png")
        assert 0.45 < (noisy == side).mean() < 0.55


def test_the_same_pixels_get_the_same_noise_everywhere(tmp_path: Path) -> None:
    pixels = random_image(tmp_path / "x.png")
    Image.fromarray(pixels).save(tmp_path / "y.bmp")
    once = changed("noise:0.1", tmp_path / "x.png")
    assert np.array_equal(changed("noise:0.1", tmp_path / "y.bmp"), once)
    # NumPy keeps the stream of RandomState fixed, so these levels hold on every machine.
    grey(tmp_path / "small.png", 100, side=2)
    assert changed("noise:0.1", tmp_path / "small.png").ravel().tolist() == LEVELS


def test_other_pixels_get_other_noise(tmp_path: Path) -> None:
    grey(tmp_path / "x.png", 100)
    grey(tmp_path / "y.png", 101)
    one, other = (changed("noise:0.1", tmp_path / name).astype(float).ravel() for name in ("x.png", "y.png"))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_more_noise_is_the_same_noise_scaled(tmp_path: Path) -> None:
    grey(tmp_path / "x.png", 128)
    weak, strong = (changed(f"noise:{std}", tmp_path / "x.png") - 128.0 for std in (0.05, 0.1))
    assert np.abs(strong - 2 * weak).max() <= 1.5


def test_a_file_that_cannot_be_decoded_is_left_to_the_detector(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    assert Condition.parse("jpeg:75").source(broken) == broken


def test_an_image_too_large_for_a_format_costs_only_its_own_row(tmp_path: Path, tiny_bundle: Path) -> None:
    """WebP holds at most 16,383 pixels a side."""
    Image.new("RGB", (16_400, 60)).save(tmp_path / "wide.png")
    source = Condition.parse("webp:80").source(tmp_path / "wide.png")
    assert isinstance(source, Unencodable)
    with Detector(tiny_bundle) as detector:
        [row] = detector.detect([source])
    assert (row.status, row.score) == ("error", None)
    assert row.error is not None
    assert "webp cannot hold 16400 x 60 pixels" in row.error

"""Crops and normalised tensors follow their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.errors import ShapeMismatch, UsageError
from mdmf_deploy.images.crops import Crop, center_crop, crops, normalise

SIDES = st.integers(1, 70)


def located(height: int, width: int) -> np.ndarray:
    """Return an image whose first two channels are each pixel's row and column (below 256)."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y, x, np.zeros_like(x)], -1).astype(np.uint8)


def corners(crop: Crop) -> list[tuple[int, int]]:
    return [(int(square[0, 0, 0]), int(square[0, 0, 1])) for square in crop.pixels]


@settings(deadline=None, derandomize=True)
@given(SIDES, SIDES, SIDES)
def test_a_small_image_is_mirrored_as_numpy_does(height: int, width: int, size: int) -> None:
    pixels = located(height, width)
    top, left = (height - size) // 2, (width - size) // 2
    margins = [(max(0, -start), max(0, start + size - side)) for start, side in ((top, height), (left, width))]
    expected = np.pad(pixels, [*margins, (0, 0)], mode="reflect")
    expected = expected[max(0, top) : max(0, top) + size, max(0, left) : max(0, left) + size]
    crop = center_crop(pixels, size)
    np.testing.assert_array_equal(crop.pixels[0], expected)
    assert crop.kind == ("center" if min(height, width) >= size else "reflected")


def test_a_crop_does_not_keep_its_image_alive() -> None:
    pixels = located(90, 100)
    for crop in (center_crop(pixels, 56), center_crop(pixels, 200), crops(pixels, 20, 4)):
        assert not np.shares_memory(crop.pixels, pixels)
        assert crop.pixels.flags.c_contiguous


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 250), st.integers(1, 250), st.integers(1, 60), st.integers(1, 12))
def test_crops_start_at_the_centre_keep_their_distance_and_lie_inside(
    height: int, width: int, size: int, count: int
) -> None:
    pixels = located(height, width)
    several = crops(pixels, size, count)
    np.testing.assert_array_equal(several.pixels[:1], center_crop(pixels, size).pixels)
    if several.kind == "reflected":
        return
    places = corners(several)
    assert 1 <= len(places) <= count
    assert several.kind == ("center" if len(places) == 1 else f"center+{len(places) - 1}")
    for index, (top, left) in enumerate(places):
        np.testing.assert_array_equal(several.pixels[index], pixels[top : top + size, left : left + size])
        for other in places[:index]:
            assert 9 * ((top - other[0]) ** 2 + (left - other[1]) ** 2) >= size**2
    if count > 1:
        assert places[: count - 1] == corners(crops(pixels, size, count - 1))[: count - 1]


def test_five_crops_are_the_centre_and_the_corners() -> None:
    several = crops(located(200, 250), 56, 5)
    assert several.kind == "center+4"
    assert corners(several) == [(72, 97), (0, 0), (0, 194), (144, 0), (144, 194)]


def test_an_image_without_room_gives_fewer_crops() -> None:
    assert crops(located(80, 80), 56, 9).kind == "center"
    assert crops(located(96, 56), 56, 9).kind == "center+2"
    assert crops(located(20, 300), 56, 9).kind == "reflected"
    with pytest.raises(UsageError, match="at least 1"):
        crops(located(84, 84), 56, 0)


def test_normalising_is_the_formula_rounded_once() -> None:
    plan = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    levels = np.random.default_rng(0).integers(0, 256, (5, 17, 17, 3), np.uint8)
    exact = (levels / 255 - np.array(plan.mean)) / np.array(plan.std)
    tensor = normalise(levels, plan)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor, exact.astype(np.float32).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(normalise(levels[2:3, ::-1], plan), tensor[2:3, :, ::-1])
    assert normalise(levels[:0], plan).shape == (0, 3, 17, 17)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_wrong_arrays_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ShapeMismatch, match="uint8"):
        center_crop(wrong, 4)
    with pytest.raises(ShapeMismatch, match="uint8"):
        normalise(wrong, Preprocessing())
    with pytest.raises(ShapeMismatch, match="at least 1"):
        center_crop(np.zeros((4, 4, 3), np.uint8), 0)

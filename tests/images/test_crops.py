"""Crops and normalised tensors follow their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.errors import ShapeMismatch, UsageError
from mdmf_deploy.images.crops import Box, boxes, center_crop, crops, grid, normalise, squares

SIDES = st.integers(1, 70)


def located(height: int, width: int) -> np.ndarray:
    """Return an image whose first two channels are each pixel's row and column (below 256)."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y, x, np.zeros_like(x)], -1).astype(np.uint8)


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


def starts(placed: list[Box]) -> tuple[list[int], list[int]]:
    """Return the rows and the columns at which boxes begin, ascending."""
    return sorted({top for _, top, _, _ in placed}), sorted({left for left, _, _, _ in placed})


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 250), st.integers(1, 250), st.integers(2, 60), st.integers(1, 12))
def test_crops_form_an_even_grid_inside_the_image(height: int, width: int, size: int, count: int) -> None:
    placed = boxes(height, width, size, count)
    rows, columns = grid(height, width, size, count)
    tops, lefts = starts(placed)
    # Row by row, every row with every column.
    assert [(top, left) for left, top, _, _ in placed] == [(top, left) for top in tops for left in lefts]
    assert (len(tops), len(lefts)) == (rows, columns)
    assert len(placed) <= count
    for side, begins in ((height, tops), (width, lefts)):
        if min(height, width) >= size:
            assert begins[0] >= 0
            assert begins[-1] + size <= side
            # The same on both sides, but for rounding.
            assert all(
                0 <= side - size - first - last <= 1 for first, last in zip(begins, reversed(begins), strict=True)
            )
        gaps = np.diff(begins)
        assert np.ptp(gaps) <= 1 if len(gaps) else True
        assert (gaps >= size // 2).all()
    if min(height, width) < size:
        assert (rows, columns) == (1, 1)


@settings(deadline=None, derandomize=True)
@given(st.integers(20, 250), st.integers(20, 250), st.integers(2, 20), st.integers(1, 12))
def test_the_grid_has_the_most_crops_that_fit_in_the_shape_nearest_to_the_image(
    height: int, width: int, size: int, count: int
) -> None:
    fits = {
        (rows, columns)
        for rows in range(1, count + 1)
        for columns in range(1, count // rows + 1)
        if 2 * (height - size) >= (rows - 1) * size and 2 * (width - size) >= (columns - 1) * size
    }
    rows, columns = grid(height, width, size, count)
    assert (rows, columns) in fits
    assert rows * columns == max(r * c for r, c in fits)

    def strain(r: int, c: int) -> float:
        return abs(np.log(r * width / (c * height)))

    equal = [shape for shape in fits if shape[0] * shape[1] == rows * columns]
    assert strain(rows, columns) == pytest.approx(min(strain(*shape) for shape in equal), abs=1e-9)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 250), st.integers(1, 250), st.integers(2, 60), st.integers(1, 12))
def test_the_number_of_crops_tells_where_they_lie(height: int, width: int, size: int, count: int) -> None:
    placed = boxes(height, width, size, count)
    assert boxes(height, width, size, len(placed)) == placed


@pytest.mark.parametrize(
    ("height", "width", "count", "kind", "tops", "lefts"),
    [
        (512, 512, 4, "grid 2x2", [16, 272], [16, 272]),
        (512, 512, 1, "center", [144], [144]),
        (480, 640, 4, "grid 2x2", [8, 248], [48, 368]),
        (300, 512, 4, "grid 1x3", [38], [0, 144, 288]),
        (3000, 4000, 4, "grid 2x2", [638, 2138], [888, 2888]),
        (1200, 300, 4, "grid 4x1", [38, 338, 638, 938], [38]),
        (336, 336, 4, "grid 2x2", [0, 112], [0, 112]),
        (335, 335, 4, "center", [55], [55]),
        (2000, 2000, 2, "grid 1x2", [888], [388, 1388]),
        (2000, 2000, 9, "grid 3x3", [221, 888, 1554], [221, 888, 1554]),
    ],
)
def test_where_crops_of_usual_sizes_lie(
    height: int, width: int, count: int, kind: str, tops: list[int], lefts: list[int]
) -> None:
    assert starts(boxes(height, width, 224, count)) == (tops, lefts)
    assert crops(np.zeros((height, width, 3), np.uint8), 224, count).kind == kind


@pytest.mark.parametrize("count", [1, 4, 9])
def test_crops_are_the_pixels_of_their_boxes(count: int) -> None:
    pixels = located(200, 250)
    several = crops(pixels, 56, count)
    for square, (left, top, right, bottom) in zip(several.pixels, boxes(200, 250, 56, count), strict=True):
        np.testing.assert_array_equal(square, pixels[top:bottom, left:right])
    assert count > 1 or np.array_equal(several.pixels, center_crop(pixels, 56).pixels)


def test_an_image_smaller_than_a_crop_gives_one() -> None:
    assert crops(located(20, 250), 56, 9).kind == "reflected"
    np.testing.assert_array_equal(crops(located(20, 250), 56, 9).pixels, center_crop(located(20, 250), 56).pixels)


def test_wrong_counts_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        crops(located(84, 84), 56, 0)
    with pytest.raises(ShapeMismatch, match="2 x 2 squares needs as many parts, got 1"):
        squares([located(56, 56)], 56, (2, 2))


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

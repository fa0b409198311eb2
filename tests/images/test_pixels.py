"""Pixels in memory: whatever holds them, they become the RGB that a file of the same image has."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.decode import ReadLimits, decode
from mdmf_deploy.images.pixels import own, rgb_of_array, snapshot

COLOUR = np.random.default_rng(0).integers(0, 256, (7, 5, 4), np.uint8)


def as_file(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rgb(image: Image.Image) -> np.ndarray:
    return snapshot(image, "a", ReadLimits()).rgb("a")


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [(COLOUR[..., 0], "L"), (COLOUR[..., :3], "RGB"), (COLOUR, "RGBA")],
    ids=["grey", "rgb", "rgba"],
)
def test_an_array_is_what_a_file_of_it_is(pixels: np.ndarray, mode: str) -> None:
    image = Image.fromarray(pixels)
    assert image.mode == mode
    before = pixels.copy()
    wanted = decode(as_file(image)).pixels
    np.testing.assert_array_equal(rgb_of_array(pixels, "a"), wanted)
    np.testing.assert_array_equal(rgb(image), wanted)
    if pixels.ndim == 3:
        opencv = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
        np.testing.assert_array_equal(rgb_of_array(opencv, "a", "bgr"), wanted)
    np.testing.assert_array_equal(pixels, before)


def test_grey_arrays_have_no_order_of_channels() -> None:
    np.testing.assert_array_equal(rgb_of_array(COLOUR[..., 0], "a", "bgr"), rgb_of_array(COLOUR[..., 0], "a"))


@pytest.mark.parametrize(
    ("pixels", "remedy"),
    [
        (np.zeros((4, 5, 3), np.float32), "(255 * a).round().astype('uint8')"),
        (np.zeros((4, 5), np.float64), "(255 * a).round().astype('uint8')"),
        (np.zeros((4, 5, 3), np.uint16), "(a >> 8).astype('uint8')"),
        (np.zeros((4, 5), bool), "255 * a.astype('uint8')"),
        (np.zeros((4, 5, 3), np.int64), "convert it"),
        (np.zeros((3, 40, 50), np.uint8), "move the channels last: a.transpose(1, 2, 0)"),
        (np.zeros((4, 5, 1), np.uint8), "a[..., 0]"),
        (np.zeros((2, 4, 5, 3), np.uint8), "give its images one by one: list(a)"),
        (np.zeros((4, 5, 2), np.uint8), "convert it"),
        (np.zeros(4, np.uint8), "convert it"),
    ],
    ids=lambda value: str(getattr(value, "shape", value)),
)
def test_other_arrays_are_refused_with_a_remedy(pixels: np.ndarray, remedy: str) -> None:
    with pytest.raises(ImageError) as caught:
        rgb_of_array(pixels, "frame 1")
    assert caught.value.code == "unsupported_mode"
    text = str(caught.value)
    assert text.startswith(f"frame 1 is {pixels.dtype} of shape {pixels.shape}; expected uint8 of shape (H, W), ")
    assert text.endswith(remedy)
    assert "\n" not in text


def test_no_pixels_are_empty() -> None:
    for shape in ((0, 4), (4, 0, 3)):
        with pytest.raises(ImageError) as caught:
            rgb_of_array(np.zeros(shape, np.uint8), "a")
        assert caught.value.code == "empty"
    with pytest.raises(ImageError) as caught:
        rgb(Image.new("RGB", (0, 3)))
    assert caught.value.code == "empty"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_pillow_image_of_any_mode_is_what_its_file_is(mode: str) -> None:
    image = Image.fromarray(COLOUR[..., 0].astype(np.uint16) * 257 if mode == "I;16" else COLOUR[..., :3])
    image = image if mode == "I;16" else image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    assert image.mode == mode
    format = "TIFF" if mode in ("CMYK", "PA") else "PNG"
    data = as_file(image.convert("RGBA") if mode == "PA" else image, format)
    np.testing.assert_array_equal(rgb(image), decode(data).pixels)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_a_mode_without_rgb_is_refused_as_in_a_file(mode: str) -> None:
    with pytest.raises(ImageError, match=f"a pixels of mode {mode} have no documented 8-bit RGB") as caught:
        rgb(Image.new(mode, (3, 3)))
    assert caught.value.code == "unsupported_mode"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_that_an_image_carries_is_applied_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = as_file(Image.fromarray(COLOUR[..., :3]), exif=exif)
    wanted = decode(data).pixels
    image = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(rgb(image), wanted)
    np.testing.assert_array_equal(rgb(image.convert("RGB")), wanted)
    np.testing.assert_array_equal(rgb(ImageOps.exif_transpose(image)), wanted)


def test_the_callers_image_stays_as_it_is() -> None:
    image = Image.open(io.BytesIO(as_file(Image.fromarray(COLOUR[..., :3]), transparency=(1, 2, 3))))
    assert "transparency" in image.info
    before = rgb(image)
    assert "transparency" in image.info
    np.testing.assert_array_equal(rgb(image), before)


def test_loading_a_bad_image_says_why() -> None:
    data = as_file(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    for image, code in (
        (Image.open(io.BytesIO(data[: len(data) // 2])), "truncated"),
        (Image.new("RGB", (200, 200)), "too_many_pixels"),
    ):
        with pytest.raises(ImageError) as caught:
            snapshot(image, "a", ReadLimits(max_pixels=10_000))
        assert caught.value.code == code
    closed = Image.open(io.BytesIO(data))
    closed.close()
    with pytest.raises(ImageError, match="a: its pixels cannot be read"):
        snapshot(closed, "a", ReadLimits())


def test_a_copy_of_an_array_has_its_values_and_its_order_in_memory() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (6, 8, 4), np.uint8)
    for view in (whole, whole[..., ::-1], whole[::-1, ::-2, :3], whole.transpose(1, 0, 2), whole[2:4, :, 1]):
        copy = own(view)
        assert not np.shares_memory(copy, view)
        np.testing.assert_array_equal(copy, view)
        assert np.argsort(np.abs(copy.strides)).tolist() == np.argsort(np.abs(view.strides)).tolist()
    assert own(whole[..., ::-1]).strides == whole[..., ::-1].strides
    assert own(whole[1:1]).shape == (0, 8, 4)

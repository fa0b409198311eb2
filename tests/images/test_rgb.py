"""Conversion to 8-bit RGB, layout by layout, against formulas, and Pillow's warnings in the log."""

from __future__ import annotations

import io
import logging
import struct
import warnings

import numpy as np
import pytest
from helpers import bad_inputs
from helpers.bad_inputs import adobe_cmyk, encoded, filtered, grey_tiff, photo, png, rgba
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images import raster
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.decode import decode
from mdmf_deploy.images.limits import DEFAULT_LIMITS

GREY16 = (np.arange(32 * 48, dtype=np.uint32) * 42).astype(np.uint16).reshape(32, 48)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    colour, alpha = colour.astype(int), alpha.astype(int)
    return ((alpha * colour + (255 - alpha) * 255) / 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_colour_is_untouched(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(decode(encoded(photo(), format, **options)).pixels, photo())


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_laid_over_white(format: str) -> None:
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    pixels = decode(encoded(rgba(), format, **options)).pixels
    np.testing.assert_array_equal(pixels, over_white(rgba()[..., :3], rgba()[..., 3:]))


def test_grey_with_alpha_is_laid_over_white() -> None:
    picture = Image.fromarray(rgba()).convert("LA")
    values = np.asarray(picture)
    pixels = decode(encoded(picture, "PNG")).pixels
    np.testing.assert_array_equal(pixels, over_white(grey(values[..., 0]), values[..., 1:]))


def test_a_palette_s_alpha_is_laid_over_white() -> None:
    alphas = bytes([0, 128, 255])
    picture = Image.open(io.BytesIO(bad_inputs.palette_png(alphas)))
    indices = np.asarray(picture)
    colours = np.array(picture.getpalette(), np.uint8).reshape(-1, 3)[indices]
    alpha = np.array([*alphas, *[255] * 253], np.uint8)[indices]
    assert set(np.unique(indices)) >= {0, 1, 2}
    np.testing.assert_array_equal(decode(bad_inputs.palette_png(alphas)).pixels, over_white(colours, alpha[..., None]))
    np.testing.assert_array_equal(decode(bad_inputs.palette_png(None)).pixels, colours)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_grey_png_s_key_is_matched_at_its_own_depth(depth: int) -> None:
    levels = 2**depth
    key = levels - 2
    values = np.arange(16, dtype=np.uint8) % levels if depth < 8 else np.arange(246, 262).astype(np.uint8)
    bits = np.unpackbits(values[:, None], axis=1)[:, 8 - depth :]
    data = png(16, 1, depth, 0, b"\0" + np.packbits(bits).tobytes(), [(b"tRNS", struct.pack(">H", key))])
    expected = np.where(values == key, 255, values.astype(int) * 255 // (levels - 1))
    np.testing.assert_array_equal(decode(data).pixels[0, :, 0], expected)


def test_a_16_bit_grey_png_s_key_is_matched_before_reduction() -> None:
    row = np.array([[0x1234, 0x1235, 0x1334]], ">u2")
    data = png(3, 1, 16, 0, filtered(row), [(b"tRNS", struct.pack(">H", 0x1234))])
    np.testing.assert_array_equal(decode(data).pixels[0, :, 0], [255, 0x12, 0x13])


def test_a_colour_png_s_key_is_matched_in_all_channels() -> None:
    row = np.array([[[1, 2, 3], [1, 2, 4], [9, 9, 9]]], np.uint8)
    data = png(3, 1, 8, 2, filtered(row), [(b"tRNS", struct.pack(">HHH", 1, 2, 3))])
    np.testing.assert_array_equal(decode(data).pixels[0], [[255, 255, 255], [1, 2, 4], [9, 9, 9]])


@pytest.mark.parametrize("key", [[], [(b"tRNS", struct.pack(">HHH", 0x0102, 0x0304, 0x0506))]])
def test_16_bit_colour_keeps_the_high_byte_and_ignores_a_key(key: list[tuple[bytes, bytes]]) -> None:
    row = np.array([[[0x0102, 0x0304, 0x0506], [0xFFFF, 0x80FF, 0x00FF], [0, 0, 0]]], ">u2")
    expected = [[1, 3, 5], [255, 128, 0], [0, 0, 0]]
    np.testing.assert_array_equal(decode(png(3, 1, 16, 2, filtered(row), key)).pixels[0], expected)


def test_16_bit_grey_keeps_the_high_byte_in_either_byte_order() -> None:
    expected = grey((GREY16 >> 8).astype(np.uint8))
    np.testing.assert_array_equal(decode(encoded(GREY16, "PNG")).pixels, expected)
    np.testing.assert_array_equal(decode(grey_tiff(GREY16, 16)).pixels, expected)
    np.testing.assert_array_equal(decode(encoded(GREY16.astype(">u2"), "TIFF")).pixels, expected)


def test_12_bit_grey_keeps_its_highest_8_bits() -> None:
    expected = grey((GREY16 >> 8).astype(np.uint8))
    np.testing.assert_array_equal(decode(grey_tiff(GREY16 >> 4, 12)).pixels, expected)


@pytest.mark.parametrize(("values", "bits"), [(GREY16, 16), ((GREY16 >> 8).astype(np.uint8), 8)])
def test_white_is_zero_is_inverted(values: np.ndarray, bits: int) -> None:
    expected = 255 - grey((GREY16 >> 8).astype(np.uint8))
    np.testing.assert_array_equal(decode(grey_tiff(values, bits, photometric=0)).pixels, expected)


def test_signed_16_bit_is_refused() -> None:
    with pytest.raises(ImageError) as caught:
        decode(grey_tiff(GREY16.astype(np.int16), 16, sample_format=2))
    assert caught.value.code == "unsupported_mode"


def cmyk(ink: np.ndarray) -> Image.Image:
    """Return the image of (H, W, 4) values. Pillow 11.3 warns of fromarray's own way to say so."""
    return Image.frombytes("CMYK", (ink.shape[1], ink.shape[0]), ink.tobytes())


def test_cmyk_multiplies_ink_away() -> None:
    ink = np.random.default_rng(3).integers(0, 256, (32, 48, 4), np.uint8)
    pixels = decode(encoded(cmyk(ink), "TIFF")).pixels
    exact = (255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:].astype(float)) / 255
    assert np.abs(pixels - exact).max() <= 1


def test_an_adobe_cmyk_jpeg_is_not_inverted() -> None:
    assert np.abs(decode(adobe_cmyk()).pixels.astype(int) - photo()).mean() < 8


def test_a_ycck_jpeg_is_converted_as_ycck() -> None:
    # The stored planes are the photo's Y, Cb, Cr and K = 255 (no black). So the inks are the photo, and the colours are
    # its negative.
    planes = np.asarray(Image.fromarray(photo()).convert("YCbCr"))
    stored = np.concatenate([planes, np.full((*planes.shape[:2], 1), 255, np.uint8)], -1)
    data = bytearray(encoded(cmyk(255 - stored), "JPEG", quality=100))
    adobe = data.index(b"Adobe")
    data[adobe + 11] = 2
    assert np.abs(decode(bytes(data)).pixels.astype(int) - (255 - photo())).mean() < 3


def tiff_with_a_cut_tag() -> bytes:
    """Return a TIFF whose copyright tag has 9999 bytes that the file lacks. Pillow warns, but the pixels are whole."""
    tags = {256: (3, 1, 2), 257: (3, 1, 2), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 33432: (2, 9999, 8)}
    return bad_inputs.tiff({**tags, 273: (4, 1, 8), 277: (3, 1, 1), 278: (3, 1, 2), 279: (4, 1, 4)}, bytes(4))


def test_pillow_s_warnings_are_logged_here_and_left_alone_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    data = tiff_with_a_cut_tag()
    container = Container(format="tiff", data=data, width=2, height=2, orientation=None, memory=4)
    with caplog.at_level(logging.DEBUG, logger="mdmf_deploy.images"):
        assert raster.whole(container, None, DEFAULT_LIMITS).width == 2  # a warning that escapes would be an error
    assert "Pillow: " in caplog.text
    filters = list(warnings.filters)
    with (
        pytest.warns(UserWarning, match="larger than file|Truncated File Read"),
        Image.open(io.BytesIO(data)) as image,
    ):
        image.load()
    assert warnings.filters == filters

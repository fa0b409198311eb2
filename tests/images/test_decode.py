"""The decode policy, layout by layout, against formulas; and its laws on hostile bytes."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from helpers import bad_inputs
from helpers.bad_inputs import adobe_cmyk, broken, encoded, grey_tiff, photo, png, rgba, valid
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images import decode as images
from mdmf_deploy.images.decode import Code, Decoded, ReadLimits, decode

VALID, BROKEN = valid(), broken()
FORMATS = {".jpg": "jpeg", ".png": "png", ".webp": "webp", ".tif": "tiff", ".bmp": "bmp", ".gif": "gif"}
SMALL = ReadLimits(max_pixels=1_000_000)
GREY16 = (np.arange(32 * 48, dtype=np.uint32) * 42).astype(np.uint16).reshape(32, 48)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def outcome(data: bytes) -> tuple[str, Decoded | None]:
    """(error code, None) or ("", image)."""
    try:
        return "", decode(data, SMALL)
    except ImageError as error:
        return error.code, None


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    colour, alpha = colour.astype(int), alpha.astype(int)
    return ((alpha * colour + (255 - alpha) * 255) / 255 + 0.5).astype(np.uint8)


def filtered(rows: np.ndarray) -> bytes:
    """PNG scan lines: a zero filter byte before each row's bytes."""
    return b"".join(b"\0" + row.tobytes() for row in rows)


@pytest.mark.parametrize("name", VALID)
def test_whole_files_decode_to_rgb(name: str) -> None:
    image = decode(VALID[name])
    assert image.pixels.shape == (image.height, image.width, 3)
    assert image.pixels.dtype == np.uint8
    assert image.pixels.flags.c_contiguous
    assert image.format == FORMATS[Path(name).suffix]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_cost_a_stable_code_and_one_line(name: str) -> None:
    data, code = BROKEN[name]
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.code == code
    assert code in get_args(Code)
    assert "\n" not in str(caught.value)


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


def test_a_palette_s_alphas_are_laid_over_white() -> None:
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


def test_cmyk_multiplies_ink_away() -> None:
    ink = np.random.default_rng(3).integers(0, 256, (32, 48, 4), np.uint8)
    pixels = decode(encoded(Image.fromarray(ink, "CMYK"), "TIFF")).pixels
    exact = (255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:].astype(float)) / 255
    assert np.abs(pixels - exact).max() <= 1


def test_an_adobe_cmyk_jpeg_is_not_inverted() -> None:
    assert np.abs(decode(adobe_cmyk()).pixels.astype(int) - photo()).mean() < 8


def test_a_ycck_jpeg_is_read_as_such() -> None:
    # Stored planes Y, Cb, Cr of the photo and K = 255 (no black): inks are the photo, so the colours are its negative.
    planes = np.asarray(Image.fromarray(photo()).convert("YCbCr"))
    stored = np.concatenate([planes, np.full((*planes.shape[:2], 1), 255, np.uint8)], -1)
    data = bytearray(encoded(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=100))
    adobe = data.index(b"Adobe")
    data[adobe + 11] = 2
    assert np.abs(decode(bytes(data)).pixels.astype(int) - (255 - photo())).mean() < 3


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied_once(format: str, orientation: int) -> None:
    upright = decode(bad_inputs.oriented(format, 1)).pixels
    image = decode(bad_inputs.oriented(format, orientation))
    np.testing.assert_array_equal(image.pixels, TURNED[orientation](upright))
    assert (image.width, image.height) == ((48, 32) if orientation < 5 else (32, 48))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage, and more of it", b"Exif\0\0II*\0\xff\xff\xff\x7f", b""])
def test_a_broken_exif_block_leaves_the_image_unturned(exif: bytes) -> None:
    np.testing.assert_array_equal(decode(encoded(photo(), "PNG", exif=exif or b"\0")).pixels, photo())
    np.testing.assert_array_equal(decode(bad_inputs.jpeg(exif=exif)).pixels, decode(bad_inputs.jpeg()).pixels)


def test_icc_profiles_are_ignored() -> None:
    np.testing.assert_array_equal(decode(encoded(photo(), "PNG", icc_profile=b"no profile")).pixels, photo())


def test_of_animations_the_first_frame_counts() -> None:
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(3)]
    moving = {"save_all": True, "append_images": frames[1:], "duration": 40}
    np.testing.assert_array_equal(decode(encoded(frames[0], "PNG", **moving)).pixels, photo())
    np.testing.assert_array_equal(decode(encoded(frames[0], "WEBP", lossless=True, **moving)).pixels, photo())
    np.testing.assert_array_equal(decode(encoded(frames[0], "TIFF", **moving)).pixels, photo())
    np.testing.assert_array_equal(decode(bad_inputs.gif(3)).pixels, decode(bad_inputs.gif(1)).pixels)
    stereo = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:2])
    assert decode(stereo).format == "jpeg"


def test_the_pixel_cap_is_exact_and_comes_before_any_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("png-rgb.png", "jpeg-444.jpg", "webp-lossy.webp", "webp-lossless.webp", "webp-alpha.webp"):
        assert decode(VALID[name], ReadLimits(max_pixels=48 * 32)).width == 48
        with pytest.raises(ImageError, match="48 x 32") as caught:
            decode(VALID[name], ReadLimits(max_pixels=48 * 32 - 1))
        assert caught.value.code == "too_many_pixels"
    monkeypatch.setitem(images.READERS, "webp", lambda source: pytest.fail("libwebp saw a canvas over the cap"))
    with pytest.raises(ImageError):
        decode(BROKEN["huge-header.webp"][0])


def test_the_pixel_cap_holds_for_a_tiff_s_tiles_too(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decode(bad_inputs.tiled_tiff(64), ReadLimits(max_pixels=64 * 64))
    assert (whole.width, whole.height) == (16, 16)
    monkeypatch.setattr(images.TiffImagePlugin.TiffImageFile, "load", lambda self: pytest.fail("read a tile over it"))
    with pytest.raises(ImageError, match="tiff tile of 64 x 64 pixels is larger") as caught:
        decode(bad_inputs.tiled_tiff(64), ReadLimits(max_pixels=64 * 64 - 1))
    assert caught.value.code == "too_many_pixels"


def test_our_cap_rules_not_pillow_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 48 x 32 is over it, but not twice
    for name in ("png-rgb.png", "jpeg-444.jpg", "gif-animated.gif", "tiff-raw.tif", "webp-lossy.webp"):
        assert decode(VALID[name]).width == 48


def test_no_bytes_and_too_many() -> None:
    data = VALID["png-rgb.png"]
    assert decode(data, ReadLimits(max_bytes=len(data))).width == 48
    with pytest.raises(ImageError) as caught:
        decode(data, ReadLimits(max_bytes=len(data) - 1))
    assert caught.value.code == "too_many_bytes"


def test_memory_that_runs_out_costs_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(source: io.BytesIO) -> ImageFile.ImageFile:
        raise MemoryError

    monkeypatch.setitem(images.READERS, "png", exhausted)
    with pytest.raises(ImageError) as caught:
        decode(VALID["png-rgb.png"])
    assert caught.value.code == "too_many_pixels"


def test_a_process_that_accepts_truncated_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match="LOAD_TRUNCATED_IMAGES"):
        decode(VALID["png-rgb.png"])


def tiff_with_a_cut_tag() -> bytes:
    """A copyright of 9999 bytes that the file does not hold: Pillow warns, the pixels are whole."""
    tags = {256: (3, 1, 2), 257: (3, 1, 2), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 33432: (2, 9999, 8)}
    return bad_inputs.tiff({**tags, 273: (4, 1, 8), 277: (3, 1, 1), 278: (3, 1, 2), 279: (4, 1, 4)}, bytes(4))


def test_pillow_s_warnings_are_logged_here_and_left_alone_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="mdmf_deploy.images"):
        assert decode(tiff_with_a_cut_tag()).width == 2  # a warning that got out would be an error
    assert "Pillow: " in caplog.text
    filters = list(warnings.filters)
    with (
        pytest.warns(UserWarning, match="larger than file|Truncated File Read"),
        Image.open(io.BytesIO(tiff_with_a_cut_tag())) as image,
    ):
        image.load()
    assert warnings.filters == filters


def test_threads_decode_alike() -> None:
    names = list(VALID) * 4
    with ThreadPoolExecutor(8) as pool:
        for name, image in zip(names, pool.map(decode, (VALID[name] for name in names)), strict=True):
            np.testing.assert_array_equal(image.pixels, decode(VALID[name]).pixels)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(VALID)), st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_told_so_or_had_all_its_pixels(name: str, part: float) -> None:
    data = VALID[name]
    cut = data[: int(part * len(data))]
    code, image = outcome(cut)
    if image:
        np.testing.assert_array_equal(image.pixels, decode(data).pixels)
    else:
        assert code == "truncated" or (code in ("empty", "unsupported_format") and len(cut) < 16)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(VALID)),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6),
    st.booleans(),
)
def test_flipped_bytes_never_raise_anything_but_an_image_error(
    name: str, flips: list[tuple[int, int]], header: bool
) -> None:
    data = bytearray(VALID[name])
    for at, value in flips:
        data[at % (min(len(data), 160) if header else len(data))] = value
    code, image = outcome(bytes(data))
    assert image is not None or code in get_args(Code)


@given(
    st.binary(max_size=64), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"])
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_arbitrary_bytes_are_an_image_error(tail: bytes, magic: bytes) -> None:
    with pytest.raises(ImageError):
        decode(magic + tail, SMALL)


def test_a_png_s_damaged_pixels_are_corrupt() -> None:
    raw = filtered(photo())
    packed = bytearray(zlib.compress(raw))
    packed[-1] ^= 1  # Adler-32 of the pixels
    body = bytes(packed)
    whole = png(48, 32, 8, 2, raw)
    with pytest.raises(ImageError) as caught:
        decode(whole.replace(zlib.compress(raw), body))
    assert caught.value.code == "corrupt"

"""Reading and decoding: every outcome has a stable code, hostile bytes included, and golden files pin the pixels."""

from __future__ import annotations

import io
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from helpers import bad_inputs
from helpers.bad_inputs import broken, encoded, filtered, photo, png, valid
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, TiffImagePlugin

from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images.decode import Code, Decoded, ReadLimits, decode, decoder_version, read
from mdmf_deploy.images.raster import READERS

VALID, BROKEN = valid(), broken()
FORMATS = {".jpg": "jpeg", ".png": "png", ".webp": "webp", ".tif": "tiff", ".bmp": "bmp", ".gif": "gif"}
SMALL = ReadLimits(max_pixels=1_000_000)
GOLDEN = json.loads((bad_inputs.GOLDEN / "decoding.json").read_text(encoding="utf-8"))


def outcome(data: bytes) -> tuple[str, Decoded | None]:
    """Return (error code, None) or ("", image)."""
    try:
        return "", decode(data, SMALL)
    except ImageError as error:
        return error.code, None


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


def test_the_first_frame_of_an_animation_counts() -> None:
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
    monkeypatch.setitem(READERS, "webp", lambda source: pytest.fail("libwebp saw a canvas over the cap"))
    with pytest.raises(ImageError):
        decode(BROKEN["huge-header.webp"][0])


def test_the_pixel_cap_holds_for_a_tiff_s_tiles_too(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decode(bad_inputs.tiled_tiff(64), ReadLimits(max_pixels=64 * 64))
    assert (whole.width, whole.height) == (16, 16)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", lambda self: pytest.fail("read a tile over the cap"))
    with pytest.raises(ImageError, match="tiff tile of 64 x 64 pixels: 4096 have to be decoded") as caught:
        decode(bad_inputs.tiled_tiff(64), ReadLimits(max_pixels=64 * 64 - 1))
    assert caught.value.code == "too_many_pixels"


def test_our_pixel_cap_replaces_pillow_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 48 x 32 is over it, but not twice
    for name in ("png-rgb.png", "jpeg-444.jpg", "gif-animated.gif", "tiff-raw.tif", "webp-lossy.webp"):
        assert decode(VALID[name]).width == 48


def test_the_byte_cap_is_exact() -> None:
    data = VALID["png-rgb.png"]
    assert decode(data, ReadLimits(max_bytes=len(data))).width == 48
    with pytest.raises(ImageError) as caught:
        decode(data, ReadLimits(max_bytes=len(data) - 1))
    assert caught.value.code == "too_many_bytes"


def test_memory_that_runs_out_costs_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(source: io.BytesIO) -> ImageFile.ImageFile:
        raise MemoryError

    monkeypatch.setitem(READERS, "png", exhausted)
    with pytest.raises(ImageError) as caught:
        decode(VALID["png-rgb.png"])
    assert caught.value.code == "too_much_memory"


def test_a_process_that_accepts_truncated_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match="LOAD_TRUNCATED_IMAGES"):
        decode(VALID["png-rgb.png"])


def test_threads_decode_alike() -> None:
    names = list(VALID) * 4
    with ThreadPoolExecutor(8) as pool:
        for name, image in zip(names, pool.map(decode, (VALID[name] for name in names)), strict=True):
            np.testing.assert_array_equal(image.pixels, decode(VALID[name]).pixels)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(VALID)), st.floats(0, 1, exclude_max=True))
@example("jpeg-420.jpg", 0.9921875)
def test_a_cut_file_is_truncated_or_has_all_its_pixels(name: str, part: float) -> None:
    data = VALID[name]
    cut = data[: int(part * len(data))]
    code, image = outcome(cut)
    if not image:
        assert code == "truncated" or (code in ("empty", "unsupported_format") and len(cut) < 16)
        return
    pixels, whole = image.pixels, decode(data).pixels
    if name.startswith("jpeg"):
        # The padding of a scan may stand for its last two blocks. They reach a pixel further where colour is enlarged.
        pixels, whole = pixels.copy(), whole.copy()
        pixels[15:, 31:] = whole[15:, 31:] = 0
    np.testing.assert_array_equal(pixels, whole)


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


def test_golden_files_cover_every_kind() -> None:
    files = {path.name for path in (bad_inputs.GOLDEN / "decoding").iterdir()}
    assert set(GOLDEN["images"]) == files == set(valid())


@pytest.mark.parametrize("name", GOLDEN["images"])
def test_golden_files_give_the_same_tensors_on_every_machine(name: str) -> None:
    data = (bad_inputs.GOLDEN / "decoding" / name).read_bytes()
    assert bad_inputs.described(data, GOLDEN["crop"]) == GOLDEN["images"][name], (
        f"{name}: the golden values were made with {GOLDEN['decoder']}, this is {decoder_version()}; "
        "if only lossy files differ, a codec has changed: see tests/helpers/bad_inputs.py"
    )


def test_a_name_that_is_not_utf_8_can_be_read(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    path.write_bytes(b"abc")
    assert read(path) == b"abc"
    assert read(path, ReadLimits(max_bytes=3)) == b"abc"
    with pytest.raises(ImageError, match=r"caf\\xe9.jpg") as caught:
        read(path, ReadLimits(max_bytes=2))
    assert caught.value.code == "too_many_bytes"
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("name", ["none.jpg", "file/none.jpg", "dangling.jpg"])
def test_a_path_without_a_file_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone")
    with pytest.raises(ImageError) as caught:
        read(tmp_path / name)
    assert caught.value.code == "missing"


def test_folders_pipes_and_devices_are_not_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path, tmp_path / "pipe.jpg", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(ImageError) as caught:
            read(path)
        assert caught.value.code == "not_a_file"


def test_a_pipe_that_takes_a_file_s_place_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, plain = tmp_path / "pipe.jpg", tmp_path / "plain.jpg"
    os.mkfifo(pipe)
    plain.write_bytes(b"x")
    status = plain.stat()
    monkeypatch.setattr(Path, "stat", lambda self, **_: status)
    with pytest.raises(ImageError) as caught:
        read(pipe)
    assert caught.value.code == "not_a_file"


def test_a_file_the_system_refuses_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    path.write_bytes(b"x")
    for odd in (tmp_path / "loop.jpg", tmp_path / ("n" * 300), Path("nul\0.jpg")):
        with pytest.raises(ImageError) as caught:
            read(odd)
        assert caught.value.code == "unreadable"

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(ImageError, match="Permission denied") as caught:
        read(path)
    assert caught.value.code == "unreadable"

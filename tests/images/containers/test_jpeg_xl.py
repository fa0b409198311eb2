"""JPEG XL: known pixels, turned once, and refusal of what its decoder would get wrong."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images import raster
from mdmf_deploy.images.containers import jpeg_xl, parse
from mdmf_deploy.images.containers.boxes import made
from mdmf_deploy.images.decode import decode
from mdmf_deploy.images.limits import DEFAULT_LIMITS

pillow_jxl = pytest.importorskip("pillow_jxl")
PHOTO = np.random.default_rng(0).integers(0, 256, (48, 80, 3)).astype(np.uint8)
ALPHA = np.where(np.arange(80) < 40, 255, 0).astype(np.uint8) * np.ones((48, 1), np.uint8)
SIGNATURE = made(b"JXL ", b"\r\n\x87\n") + made(b"ftyp", b"jxl ", bytes(4), b"jxl ")
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


def written(pixels: np.ndarray, **options: object) -> bytes:
    """Return a bare codestream."""
    height, width = pixels.shape[:2]
    mode = Image.fromarray(pixels).mode
    encoder = pillow_jxl.Encoder(mode=mode, lossless=True, quality=100.0, use_original_profile=True, num_threads=0)
    return bytes(encoder(pixels.tobytes(), width, height, jpeg_encode=False, **options))


def code_of(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    return caught.value.code


def header(*fields: tuple[int, int]) -> bytes:
    """Return a codestream that is only an image header: (value, bits) each, lowest bit first."""
    value = at = 0
    for number, bits in fields:
        value |= number << at
        at += bits
    return b"\xff\x0a" + value.to_bytes(at // 8 + 40, "little")


SIZE = ((1, 1), (5, 5), (0, 3), (9, 5))  # 80 x 48, in units of 8


def test_lossless_files_give_the_very_pixels() -> None:
    image = decode(written(PHOTO))
    np.testing.assert_array_equal(image.pixels, PHOTO)
    assert (image.format, image.width, image.height) == ("jpeg_xl", 80, 48)
    np.testing.assert_array_equal(decode(written(PHOTO[..., 0])).pixels, np.dstack([PHOTO[..., 0]] * 3))
    wide = np.tile(PHOTO, (7, 5, 1))
    np.testing.assert_array_equal(decode(written(wide)).pixels, wide)


def test_alpha_is_laid_over_white() -> None:
    expected = np.where(ALPHA[..., None] > 0, PHOTO, 255)
    np.testing.assert_array_equal(decode(written(np.dstack([PHOTO, ALPHA]))).pixels, expected)


def test_of_grey_with_sixteen_bits_the_high_byte_counts() -> None:
    deep = np.random.default_rng(1).integers(0, 65_536, (48, 80)).astype(np.uint16)
    np.testing.assert_array_equal(decode(written(deep)).pixels, np.dstack([deep >> 8] * 3))


@pytest.mark.parametrize("size", [(1, 1), (8, 256), (7, 300), (511, 513), (90, 160), (160, 90), (120, 100)])
def test_every_way_to_write_a_size_is_read(size: tuple[int, int]) -> None:
    pixels = np.zeros((*size, 3), np.uint8)
    container = parse(written(pixels), DEFAULT_LIMITS)
    assert (container.height, container.width) == size


def test_boxes_give_the_pixels_of_the_codestream() -> None:
    stream = written(PHOTO)
    one = SIGNATURE + made(b"jxlc", stream)
    parts = [made(b"jxlp", (n + (n == 2) * 2**31).to_bytes(4, "big"), stream[at : at + 5000 if n < 2 else None])
             for n, at in enumerate((0, 5000, 10_000))]  # fmt: skip
    several = SIGNATURE + parts[0] + made(b"Exif", bytes(99)) + parts[1] + parts[2] + made(b"xml ", b"<")
    for data in (one, several):
        np.testing.assert_array_equal(decode(data).pixels, PHOTO)
        assert parse(data, DEFAULT_LIMITS).data == stream
    with pytest.raises(ImageError, match="in order"):
        parse(SIGNATURE + parts[0] + parts[2], DEFAULT_LIMITS)
    assert code_of(SIGNATURE + parts[0] + parts[1]) == "truncated"
    assert code_of(one[:-9]) == "truncated"
    assert code_of(SIGNATURE + made(b"jxlc", b"no codestream")) == "corrupt"


def oriented(stream: bytes, orientation: int) -> bytes | None:
    """Return a codestream with an orientation, or None.

    Its extra fields take 6 more bits near the start of the header, and 1 (a default tone mapping) 3 bits before its
    end. That end is unknown, and the frame begins at the next whole byte. So every end is tried.
    """
    bits = int.from_bytes(stream, "little")
    at = 16 + sum(size for _, size in SIZE) + 1
    assert bits >> (at - 1) & 3 == 0, "the header has fields of its own, and no extra ones"
    for end in range(at + 8, at + 400):
        fields = [(bits, at), (1, 1), (orientation - 1, 3), (0, 3), (bits >> (at + 1), end - 4 - at), (1, 1)]
        fields += [(bits >> (end - 3), 3)]
        value = length = 0
        for field, size in fields:
            value |= (field & ((1 << size) - 1)) << length
            length += size
        data = value.to_bytes((length + 7) // 8, "little") + stream[(end + 7) // 8 :]
        try:
            decode(data)
        except ImageError:
            continue
        return data
    return None


@pytest.mark.parametrize("orientation", TURNED)
def test_the_orientation_of_the_codestream_counts_once_and_exif_never(orientation: int) -> None:
    data = oriented(written(PHOTO), orientation)
    assert data is not None
    exif = Image.Exif()
    exif[0x0112] = 6 if orientation != 6 else 3
    boxed = SIGNATURE + made(b"Exif", bytes(4), exif.tobytes()[6:]) + made(b"jxlc", data)
    image = decode(boxed)
    np.testing.assert_array_equal(image.pixels, TURNED[orientation](PHOTO))
    container = parse(boxed, DEFAULT_LIMITS)
    assert (container.height, container.width) == image.pixels.shape[:2]


def test_no_cut_file_passes_for_a_whole_one() -> None:
    data = written(PHOTO)
    for end in (*range(13, len(data), 499), len(data) - 1):
        assert code_of(data[:end]) in ("truncated", "corrupt")


def test_damage_is_found() -> None:
    data = written(PHOTO)
    found = []
    for at in range(200, len(data) - 8, 701):
        found.append(code_of(data[:at] + bytes(byte ^ 0x5A for byte in data[at : at + 8]) + data[at + 8 :]))
    assert set(found) == {"corrupt"}


def test_sizes_are_checked_before_the_codec_sees_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(raster.READERS, "jpeg_xl", lambda source: pytest.fail("the codec saw a bomb"))
    assert code_of(header((0, 1), (3, 2), (2**30 - 1, 30), (1, 3))) == "too_many_pixels"
    assert code_of(header((0, 1), (2, 2), (16_999, 18), (0, 3), (2, 2), (16_999, 18))) == "too_many_pixels"


def test_what_its_decoder_would_get_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(raster.READERS, "jpeg_xl", lambda source: pytest.fail("the codec saw it"))
    animated = header(*SIZE, (0, 1), (1, 1), (0, 3), (0, 1), (0, 1), (1, 1))
    assert code_of(animated) == "unsupported_format"
    floats = header(*SIZE, (0, 1), (0, 1), (1, 1))
    assert code_of(floats) == "unsupported_mode"
    eight_bits, one_channel = ((0, 1), (0, 2), (1, 1)), (1, 2)
    cmyk = header(*SIZE, (0, 1), (0, 1), *eight_bits, one_channel, (0, 1), (2, 2), (2, 4), (0, 3), (0, 2), (0, 2))
    assert code_of(cmyk) == "unsupported_mode"
    alpha = ((0, 1), (0, 2), (0, 3), (0, 2), (0, 2))
    assert code_of(header(*SIZE, (0, 1), (0, 1), *eight_bits, one_channel, *alpha, (1, 1))) == "unsupported_mode"


def test_a_missing_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(PHOTO)
    monkeypatch.setattr(jpeg_xl, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"JPEG XL.*mdmf-deploy\[jxl\]") as caught:
        decode(data)
    assert caught.value.code == "unsupported_format"


def test_reading_one_registers_nothing_with_pillow(tmp_path: object) -> None:
    code = (
        "from PIL import Image; Image.init()\n"
        "def tables(): return [list(Image.ID)] + [dict(t) for t in (Image.OPEN, Image.SAVE, Image.EXTENSION)]\n"
        "before = tables()\n"
        "from mdmf_deploy.images.decode import decode\n"
        f"assert decode(bytes.fromhex('{written(PHOTO[:8, :8]).hex()}')).pixels.shape == (8, 8, 3)\n"
        "assert tables() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


SEEDS = [written(PHOTO[:8, :8]), SIGNATURE + made(b"jxlc", written(PHOTO[:8, :8]))]


def only_image_errors(data: bytes) -> None:
    try:
        container = parse(data, DEFAULT_LIMITS)
    except ImageError:
        return
    assert container.memory > 0


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(2, 100), st.binary(min_size=1, max_size=8)), max_size=4))
def test_damaged_structure_never_raises_anything_else(data: bytes, damage: list[tuple[int, bytes]]) -> None:
    start = 2 if data.startswith(b"\xff") else 12
    damaged = bytearray(data)
    for at, found in damage:
        damaged[max(at, start) : max(at, start) + len(found)] = found
    only_image_errors(bytes(damaged))


@pytest.mark.parametrize("data", SEEDS)
def test_a_cut_at_any_byte_never_raises_anything_else(data: bytes) -> None:
    for end in range(12, len(data)):
        only_image_errors(data[:end])


def test_a_lossy_file_is_close_to_its_pixels() -> None:
    smooth = np.asarray(Image.fromarray(PHOTO[:6, :10]).resize((80, 48), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray(smooth).save(file, "JXL", quality=95)
    assert np.abs(decode(file.getvalue()).pixels.astype(int) - smooth).mean() < 3

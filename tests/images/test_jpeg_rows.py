"""decode_boxes gives the pixels and errors of a full decode, however much it leaves undecoded."""

from __future__ import annotations

import io
import re
from functools import lru_cache

import numpy as np
import pytest
from helpers.bad_inputs import adobe_cmyk, encoded, photo, valid
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images import jpeg_rows
from mdmf_deploy.images.crops import boxes, center_crop, crops, grid, squares
from mdmf_deploy.images.decode import ReadLimits, decode, decode_boxes

SMALL = ReadLimits(max_pixels=1_000_000)
VALID = valid()
KINDS = ("4:4:4", "4:2:2", "4:2:0", "4:1:1", "4:4:0", "grey", "cmyk")
OTHER_SAMPLING = {"4:1:1": b"\x41", "4:4:0": b"\x12"}  # which Pillow does not write


@lru_cache(maxsize=512)
def jpeg(
    kind: str, width: int, height: int, orientation: int = 1, restart: int = 0, progressive: bool = False
) -> bytes:
    """Return a noisy JPEG.  restart: MCUs between restart markers."""
    picture = Image.fromarray(photo(width, height))
    options: dict[str, object] = {"quality": 92, "restart_marker_blocks": restart, "progressive": progressive}
    if kind == "grey":
        picture = picture.convert("L")
    elif kind == "cmyk":
        picture = picture.convert("CMYK")
    else:
        options["subsampling"] = "4:4:4" if kind in OTHER_SAMPLING else kind
    if orientation != 1:
        exif = Image.Exif()
        exif[274] = orientation
        options["exif"] = exif
    data = encoded(picture, "JPEG", **options)
    return resampled(data, OTHER_SAMPLING[kind]) if kind in OTHER_SAMPLING else data


def resampled(data: bytes, sampling: bytes) -> bytes:
    """Declare another luminance sampling in a 4:4:4 file. Its pixels change, but it stays a whole picture."""
    at = data.index(b"\xff\xc2" if b"\xff\xc2" in data else b"\xff\xc0") + 11
    assert data[at] == 0x11
    return data[:at] + sampling + data[at + 1 :]


def outcome(data: bytes, size: int, count: int) -> tuple[str, bytes, tuple[object, ...]]:
    """Decode only the boxes. Return the error code or "", the crop's pixels, and the image's description."""
    try:
        part = decode_boxes(data, lambda height, width: boxes(height, width, size, count), SMALL)
    except ImageError as error:
        return error.code, b"", ()
    crop = squares(part.boxes, size, grid(part.height, part.width, size, count))
    return "", crop.pixels.tobytes(), (crop.kind, part.width, part.height, part.format)


def in_full(data: bytes, size: int, count: int) -> tuple[str, bytes, tuple[object, ...]]:
    """Return the same from a full decode."""
    try:
        whole = decode(data, SMALL)
    except ImageError as error:
        return error.code, b"", ()
    crop = crops(whole.pixels, size, count)
    return "", crop.pixels.tobytes(), (crop.kind, whole.width, whole.height, whole.format)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 90),
    st.integers(1, 160),
    st.integers(0, 10),  # 1 to 8 mean something
    st.sampled_from([0, 1, 3, 7]),
    st.integers(1, 100),
    st.sampled_from([1, 1, 2, 4]),
    st.booleans(),
)
def test_boxes_of_a_jpeg_are_those_of_the_whole(
    kind: str, width: int, height: int, orientation: int, restart: int, size: int, count: int, progressive: bool
) -> None:
    data = jpeg(kind, width, height, orientation, restart, progressive)
    assert outcome(data, size, count) == in_full(data, size, count)


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("size", [1, 9, 31, 40, 100])
def test_boxes_of_every_kind_of_file_are_those_of_the_whole(name: str, size: int) -> None:
    assert outcome(VALID[name], size, 2) == in_full(VALID[name], size, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tall_jpeg_is_decoded_in_part(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heights: list[int] = []
    load = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", lambda self: heights.append(self.height) or load(self))
    data = jpeg(kind, 40, 320)
    block = 16 if kind in ("4:2:0", "4:4:0") else 8
    # A grid of two rows ends at three quarters of the height and half a crop.
    for count, rows in ((1, 176), (2, 256)):
        assert outcome(data, 32, count)[0] == ""
        assert set(heights) == {rows + block}
        heights.clear()
    assert outcome(jpeg(kind, 40, 160, progressive=True), 32, 1)[0] == ""
    assert set(heights) == {160}


def scan(data: bytes) -> int:
    """Return where the entropy-coded data begin."""
    at = data.index(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda data: data[:-2],  # no end
        lambda data: data[:-40],
        lambda data: data[: scan(data) + 20],
        lambda data: data[:-30] + b"\xff\x02" + data[-28:],  # not a JPEG marker: libjpeg refuses it if it gets that far
        lambda data: data[:-30] + b"\xff\xc0" + data[-28:],
        lambda data: data[:-30] + b"\xff\xd9" + data[-28:],  # an early end: grey below
        lambda data: data[:-30] + b"\xff\xd3" + data[-28:],  # a restart where there are none
        lambda data: data[:-2] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + bytes(20) + b"\xff\xd9",  # a second scan
        lambda data: data[:-2] + b"\xff\xdc\0\x04\0\x10\xff\xd9",  # another height
        lambda data: data[:-2] + b"\xff\xff\xff\xd9",
        lambda data: data[: scan(data) - 14] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + data[scan(data) :],  # only Y
        lambda data: data + b"\xff\x02 and more",
        lambda data: data[:2] + b"\0\0" + data[2:],
        lambda data: data.replace(b"\xff\xc4", b"\xff\xfe", 1),  # a Huffman table gone
        lambda data: data.replace(b"\xff\xc0", b"\xff\xc1", 1),
        lambda data: data.replace(b"\xff\xc0", b"\xff\xc9", 1),  # arithmetic coding
        lambda data: data.replace(b"\0\xa0\0\x28", b"\xff\xdd\0\x08", 1),  # higher than libjpeg takes
    ],
)
@pytest.mark.parametrize("restart", [0, 3])
def test_a_spoilt_end_has_the_outcome_of_a_full_decode(spoilt: object, restart: int) -> None:
    data = spoilt(jpeg("4:2:0", 40, 160, 1, restart))  # type: ignore[operator]
    assert outcome(data, 24, 1) == in_full(data, 24, 1)


@pytest.mark.parametrize("marker", [b"\xff\x02", b"\xff\xc0", b"\xff\xda"])
def test_errors_far_below_the_needed_rows_count(marker: bytes) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (900, 300, 3), np.uint8), "JPEG", quality=95)
    assert len(data) > 4 * 64 * 1024  # Pillow feeds libjpeg in pieces of 64 KB and stops once it has all rows
    assert jpeg_rows.shortened(data, 100) is not None
    spoilt = data[:-90] + marker + data[-88:]
    assert outcome(spoilt, 24, 1) == in_full(spoilt, 24, 1)
    assert outcome(data[:-90], 24, 1) == in_full(data[:-90], 24, 1) == ("truncated", b"", ())
    assert outcome(data, 24, 1) == in_full(data, 24, 1)


@settings(max_examples=300, deadline=None, derandomize=True)
@example(("4:2:0", 0, 0.999), [])
@given(
    st.tuples(st.sampled_from(KINDS), st.sampled_from([0, 2]), st.floats(0, 1)),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0, 0xFF, 0xD9, 0xD2, 0xDA, 0x02, 77])), max_size=4
    ),
)
def test_cut_and_flipped_jpegs_have_the_outcome_of_a_full_decode(
    file: tuple[str, int, float], flips: list[tuple[float, int]]
) -> None:
    kind, restart, kept = file
    whole = jpeg(kind, 24, 120, 1, restart)
    data = bytearray(whole if kept > 0.6 else whole[: int(len(whole) * kept / 0.6)])
    for part, value in flips:
        if data:
            data[int(part * len(data))] = value
    assert outcome(bytes(data), 16, 1) == in_full(bytes(data), 16, 1)


def test_every_cut_of_a_jpeg_has_the_outcome_of_a_full_decode() -> None:
    data = jpeg("4:2:0", 16, 80)
    for end in range(scan(data) - 20, len(data)):
        assert outcome(data[:end], 8, 1) == in_full(data[:end], 8, 1), end


def test_only_suitable_files_are_shortened() -> None:
    data = jpeg("4:2:0", 40, 160)
    part = jpeg_rows.shortened(data, 60)
    assert part is not None
    assert len(part) == len(data)
    with Image.open(io.BytesIO(part)) as image:
        assert image.size == (40, 80)
    assert jpeg_rows.shortened(data, 129) is None
    assert jpeg_rows.shortened(data, 128) is not None
    for cut in range(len(data)):
        assert jpeg_rows.shortened(data[:cut], 60) is None
    assert jpeg_rows.shortened(adobe_cmyk(), 8) is not None
    scans = jpeg("4:4:4", 40, 160, progressive=True)
    assert jpeg_rows.shortened(scans, 60) is None


@pytest.mark.parametrize("header", [b"\1\0", b"\1\x10", b"\0\0"])
def test_a_header_without_sampling_or_components_is_left_to_the_decoder(header: bytes) -> None:
    """Spoil the frame header.  header: the number of components, and the first one's sampling."""
    data = bytearray(jpeg("grey", 40, 160))
    at = data.index(b"\xff\xc0") + 9
    assert data[at] == 1
    data[at], data[at + 2] = header
    assert jpeg_rows.shortened(bytes(data), 24) is None
    with pytest.raises(ImageError) as full:
        decode(bytes(data), SMALL)
    with pytest.raises(ImageError, match=re.escape(str(full.value))):
        decode_boxes(bytes(data), lambda height, width: boxes(height, width, 24, 1), SMALL)


def test_the_end_is_not_searched_when_nothing_would_be_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg("4:2:0", 40, 160)
    monkeypatch.setattr(jpeg_rows, "MARKER", None)
    assert jpeg_rows.shortened(data, 129) is None


def test_a_part_that_cannot_be_decoded_is_decoded_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg("4:2:0", 40, 160)
    wanted = in_full(data, 24, 1)
    monkeypatch.setattr(jpeg_rows, "shortened", lambda data, rows: data[:50])
    assert outcome(data, 24, 1) == wanted


def test_a_box_s_mirrored_crop_is_the_image_s() -> None:
    for height, width, size in ((9, 40, 20), (40, 9, 20), (7, 8, 60), (21, 20, 20), (20, 21, 20)):
        pixels = photo(width, height)
        [(left, top, right, bottom)] = boxes(height, width, size)
        part = squares([pixels[top:bottom, left:right]], size)
        margins = [
            (max(0, (size - side) // 2 + (size - side) % 2), max(0, (size - side) // 2)) for side in (height, width)
        ]
        expected = np.pad(pixels, [*margins, (0, 0)], mode="reflect") if min(height, width) < size else pixels
        place = [max(0, (side - size) // 2) for side in (height, width)]
        expected = expected[place[0] : place[0] + size, place[1] : place[1] + size]
        np.testing.assert_array_equal(part.pixels[0], expected)
        assert part.kind == center_crop(pixels, size).kind

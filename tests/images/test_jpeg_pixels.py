"""decode_boxes gives the pixels and errors of a full decode, and only a JPEG whose pixels are there is decoded."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from helpers.bad_inputs import encoded, photo, valid
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from mdmf_deploy.errors import ImageError
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


@lru_cache(maxsize=16)
def large(kind: str = "4:2:0", progressive: bool = False, restart: int = 0) -> bytes:
    """Return a JPEG large enough that only a part of it is decoded for a few boxes."""
    return jpeg(kind, 500, 1200, 1, restart, progressive)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("size", [100, 112])
def test_boxes_of_a_large_jpeg_are_those_of_the_whole(kind: str, count: int, size: int) -> None:
    """A crop of 112 pixels ends with a row of coded units, so its last row depends on the next one."""
    assert outcome(large(kind), size, count) == in_full(large(kind), size, count)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_jpeg_is_decoded_in_part(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    prepare = JpegImagePlugin.JpegImageFile.load_prepare
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile, "load_prepare", lambda self: sizes.append(self.size) or prepare(self)
    )
    assert outcome(large(kind), 100, 1)[0] == ""
    needed, rest = sizes
    # Half of the height and half a crop, and at most two rows of coded units.
    assert needed[0] == 500
    assert 650 < needed[1] <= 650 + 32
    # The rest is looked through at an eighth of its size.
    assert rest[0] <= 63
    assert rest[1] <= 70
    sizes.clear()
    assert outcome(large("4:4:4", progressive=True), 100, 1)[0] == ""
    assert sizes == [(500, 1200)]


@pytest.mark.parametrize("restart", [0, 7])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.55, 0.9])
@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "grey", "cmyk"])
def test_a_cut_scan_with_an_end_marker_lacks_pixels_even_where_no_box_lies(
    kind: str, share: float, restart: int
) -> None:
    data = large(kind, restart=restart)
    cut = data[: scan(data) + int(share * (len(data) - scan(data)))].rstrip(b"\xff") + b"\xff\xd9"
    assert outcome(cut, 100, 1)[0] == in_full(cut, 100, 1)[0] == "truncated"


def test_a_flat_rest_is_not_taken_for_a_missing_one() -> None:
    """Equal units repeat the same bits, so that a decoder that starts among them may never fall into step."""
    pixels = photo(1000, 1000)
    for flat in (range(600, 1000), range(600, 900)):
        pixels[flat] = (200, 210, 250)
        for quality in (30, 60, 95):
            data = encoded(pixels, "JPEG", quality=quality)
            assert outcome(data, 100, 1)[0] == ""
            assert outcome(data[:-2], 100, 1) == outcome(data, 100, 1)


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
    data = spoilt(large(restart=restart))  # type: ignore[operator]
    whole = in_full(data, 24, 1)
    # An end marker a few bytes too early may go unseen far below the boxes.
    assert outcome(data, 24, 1) == whole or (whole[0] == "truncated" and data.endswith(b"\xff\xd9"))


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

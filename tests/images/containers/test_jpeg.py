"""The walk over a JPEG's segments finds what holds pixels, whatever surrounds it."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from helpers.arithmetic_jpegs import ARITHMETIC, ARITHMETIC_PROGRESSIVE, HUFFMAN
from helpers.bad_inputs import encoded, photo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import parse
from mdmf_deploy.images.containers.exif import orientation_in
from mdmf_deploy.images.containers.jpeg import MOST_SCANS, Jpeg
from mdmf_deploy.images.decode import ReadLimits, decode, decode_boxes

PICTURE = photo(90, 70)
BASELINE = encoded(PICTURE, "JPEG", quality=90)
PROGRESSIVE = encoded(photo(300, 200), "JPEG", quality=90, progressive=True)
FILES = {"baseline": BASELINE, "progressive": PROGRESSIVE, "grey": encoded(PICTURE[..., 0], "JPEG")}
LIMITS = ReadLimits()


def jpeg(data: bytes) -> Jpeg:
    found = parse(data, LIMITS)
    assert isinstance(found, Jpeg)
    return found


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(payload) + 2).to_bytes(2, "big") + payload


def with_segments(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def first_picture(data: bytes) -> bytes:
    """Return the bytes of an MPO's first picture, of a motion photo, and so on."""
    return data[: data.index(b"\xff\xd9") + 2]


def test_a_comment_of_impossible_length_is_skipped() -> None:
    for length in (b"\0\0", b"\0\1"):
        spoilt = BASELINE[:2] + b"\xff\xfe" + length + BASELINE[2:]
        np.testing.assert_array_equal(decode(spoilt).pixels, decode(BASELINE).pixels)


SURROUNDED: dict[str, Callable[[bytes], bytes]] = {
    "comments": lambda data: with_segments(data, *[segment(0xFE, b"x" * 100)] * 1000),
    "fill bytes": lambda data: data[:2] + b"\xff" * 1_000_000 + data[2:],
    "a profile": lambda data: with_segments(data, *[segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000))] * 20),
    "a thumbnail": lambda data: with_segments(data, segment(0xE1, b"Exif\0\0" + data[:200])),
    "a motion photo": lambda data: data + b"\0\0\0\x18ftypmp42" + bytes(5000),
    "a second picture": lambda data: data + encoded(photo(40, 40), "JPEG"),
    "bytes of nothing": lambda data: with_segments(data, segment(0xFE, b"") + bytes(9)),
    "markers behind the end": lambda data: data + b"\xff\xc0\xff\xda\xff\x02",
}


@pytest.mark.parametrize("surround", SURROUNDED.values(), ids=SURROUNDED)
@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_metadata_and_later_pictures_decide_nothing(file: bytes, surround: Callable[[bytes], bytes]) -> None:
    plain, found = decode(file), decode(surround(file))
    np.testing.assert_array_equal(found.pixels, plain.pixels)
    assert found.notes == ()
    assert len(jpeg(surround(file)).data) <= len(file) + 2


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_only_the_end_marker_may_be_missing(file: bytes) -> None:
    assert file.endswith(b"\xff\xd9")
    found = decode(file[:-2])
    np.testing.assert_array_equal(found.pixels, decode(file).pixels)
    assert found.notes == ("no_end_marker",)
    # Eight bytes of padding may stand in for the last block.
    for end in range(3, len(file) - 12, 13):
        with pytest.raises(ImageError) as caught:
            decode(file[:end])
        assert caught.value.code == "truncated"


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0.02, 1),
)
def test_any_bytes_give_a_structure_or_one_line(name: str, flips: list[tuple[float, int]], kept: float) -> None:
    data = bytearray(FILES[name])
    for at, value in flips:
        data[int(at * len(data))] = value
    with suppress(ImageError):
        found = parse(bytes(data[: int(kept * len(data))]), LIMITS)
        assert found.width > 0
        assert found.height > 0


def scans_of(data: bytes) -> list[int]:
    """Return where the scans begin, by their markers."""
    return [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]


def test_a_progressive_jpeg_without_its_finer_scans_says_so() -> None:
    starts = scans_of(PROGRESSIVE)
    assert len(starts) > 3
    for start in starts[1:]:
        # The tables of the next scan stand before it.
        table = PROGRESSIVE.rindex(b"\xff\xc4", 0, start)
        coarse = PROGRESSIVE[: min(start, table)] + b"\xff\xd9"
        found = decode(coarse)
        assert found.notes == ("scans_missing",)
        with Image.open(io.BytesIO(coarse)) as image:
            np.testing.assert_array_equal(found.pixels, np.asarray(image))
    assert decode(PROGRESSIVE).notes == ()


def test_each_scan_of_a_progressive_jpeg_has_to_be_whole() -> None:
    for start, end in zip(scans_of(PROGRESSIVE), [*scans_of(PROGRESSIVE)[1:], len(PROGRESSIVE) - 2], strict=True):
        middle = (start + 14 + end) // 2
        with pytest.raises(ImageError) as caught:
            decode(PROGRESSIVE[:middle].rstrip(b"\xff") + b"\xff\xd9")
        assert caught.value.code == "truncated"


def test_more_scans_than_any_encoder_writes_are_refused() -> None:
    [first, second, *_] = scans_of(PROGRESSIVE)
    again = PROGRESSIVE[first:second]
    again = again[: again.index(b"\xff\xc4") if b"\xff\xc4" in again else len(again)]
    flood = PROGRESSIVE[:second] + again * MOST_SCANS + PROGRESSIVE[second:]
    with pytest.raises(ImageError) as caught:
        decode(flood)
    assert caught.value.code == "too_slow"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data.replace(b"\xff\xc0", b"\xff\xc3", 1), "unsupported_mode"),  # lossless
        (lambda data: data.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c", 1), "unsupported_mode"),  # 12 bits
        (lambda data: data.replace(b"\xff\xc0", b"\xff\xfe", 1), "corrupt"),  # no frame
        (lambda data: with_segments(data, segment(0xE2, b"ICC_PROFILE\0\1\1" + "XYB".encode("utf-16-be"))),
         "unsupported_mode"),
    ],
)  # fmt: skip
def test_what_cannot_be_decoded_is_named(change: Callable[[bytes], bytes], code: str) -> None:
    assert change(BASELINE) != BASELINE
    with pytest.raises(ImageError) as caught:
        decode(change(BASELINE))
    assert caught.value.code == code


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_orientation_is_pillows(order: str, orientation: int) -> None:
    exif = Image.Exif()
    exif.endian = order
    exif[271], exif[274], exif[306] = "maker", orientation, "date"
    assert orientation_in(exif.tobytes()) == (orientation if 1 <= orientation <= 8 else 1)
    assert jpeg(encoded(PICTURE, "JPEG", exif=exif)).orientation == (orientation if 1 <= orientation <= 8 else 1)


@given(st.binary(max_size=80))
def test_any_exif_has_an_orientation(exif: bytes) -> None:
    assert 1 <= orientation_in(b"Exif\0\0" + exif) <= 8
    assert 1 <= orientation_in(b"II*\0\x08\0\0\0" + exif) <= 8


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_limit_counts_the_rows_that_are_decoded(mode: str) -> None:
    data = encoded(Image.new(mode, (2000, 1500)), "JPEG")

    def top(height: int, width: int) -> list[tuple[int, int, int, int]]:
        return [(0, 0, 100, 200)]

    few = ReadLimits(max_pixels=2000 * 250)
    assert decode_boxes(data, top, few).boxes[0].shape == (200, 100, 3)
    with pytest.raises(ImageError) as caught:
        decode(data, few)
    assert caught.value.code == "too_many_pixels"
    assert decode(data, few, fit=(250, 190)).pixels.shape[:2] == (188, 250)


@pytest.mark.parametrize("progressive", [False, True])
def test_restart_markers_have_to_come_in_turn(progressive: bool) -> None:
    data = encoded(photo(300, 200), "JPEG", progressive=progressive, restart_marker_blocks=5)
    plain = decode(data).pixels
    # Some encoders write one more at the end.
    places = [at for at in range(len(data)) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    for at in places[3:60:7]:
        for spoilt in (
            data[:at] + data[at + 2 :],  # one is gone
            data[:at] + data[at : at + 2] + data[at:],  # one comes twice
            data[: at + 1] + bytes((0xD0 + (data[at + 1] + 3) % 8,)) + data[at + 2 :],  # one is another
        ):
            with pytest.raises(ImageError) as caught:
                decode(spoilt)
            assert caught.value.code == "truncated"
    if not progressive:
        following = bytes((0xFF, 0xD0 + (data[places[-1] + 1] + 1) % 8))
        np.testing.assert_array_equal(decode(data[:-2] + following + data[-2:]).pixels, plain)


@pytest.mark.parametrize("data", [ARITHMETIC, ARITHMETIC_PROGRESSIVE], ids=["sequential", "progressive"])
def test_arithmetic_codes_are_read(data: bytes) -> None:
    np.testing.assert_array_equal(decode(data).pixels, decode(HUFFMAN).pixels)
    np.testing.assert_array_equal(decode(data[:-2]).pixels, decode(HUFFMAN).pixels)


def test_arithmetic_codes_are_missed_as_well() -> None:
    first = ARITHMETIC.index(b"\xff\xda") + 14
    for end in range(first, (first + len(ARITHMETIC)) // 2, 7):
        with pytest.raises(ImageError) as caught:
            decode(ARITHMETIC[:end].rstrip(b"\xff") + b"\xff\xd9")
        assert caught.value.code == "truncated"


def test_scans_of_bare_bits_have_to_be_whole_too() -> None:
    """A grey block is one bit in a scan that refines averages."""
    data = encoded(photo(600, 500)[..., 0], "JPEG", progressive=True)
    starts = scans_of(data)
    refining = [start for start in starts if data[start + 7 : start + 10] == b"\0\0\x10"]
    assert len(refining) == 1
    for kept in (100, 300, 500):
        with pytest.raises(ImageError) as caught:
            decode(data[: refining[0] + 10 + kept].rstrip(b"\xff") + b"\xff\xd9")
        assert caught.value.code == "truncated"
        assert "missing in scan" in str(caught.value)


def test_intervals_without_data_lack_pixels() -> None:
    data = encoded(photo(300, 200), "JPEG", restart_marker_blocks=5)
    places = [at for at in range(len(data)) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    for first in (3, len(places) // 2):
        markers = b"".join(data[at : at + 2] for at in places[first:])
        with pytest.raises(ImageError) as caught:
            decode(data[: places[first]] + markers + data[places[-1] + 2 :])
        assert caught.value.code == "truncated"


def test_the_end_of_a_scan_is_found_wherever_it_lies() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    data = encoded(noise, "JPEG", quality=95)
    start = data.index(b"\xff\xda") + 14
    for length in (2**18 - 2, 2**18 - 1, 2**18):
        cut = data[: start + length]
        if not cut.endswith(b"\xff"):
            with pytest.raises(ImageError) as caught:
                decode(cut + b"\xff\xd9")
            assert caught.value.code == "truncated"


def test_memory_counts_the_rows_that_are_decoded() -> None:
    data = encoded(Image.new("RGB", (2000, 1500)), "JPEG")
    little = ReadLimits(max_memory=4 * 2**20)
    assert decode_boxes(data, lambda height, width: [(0, 0, 100, 200)], little).height == 1500
    with pytest.raises(ImageError) as caught:
        decode(data, little)
    assert caught.value.code == "too_much_memory"

"""The structure of TIFF: which pixels count, what is refused before it costs anything, and camera raw."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from helpers.bad_inputs import encoded, photo, valid
from helpers.tiffs import START, Tags, tags, tiff_file
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers.tiff import parse
from mdmf_deploy.images.decode import decode
from mdmf_deploy.images.limits import DEFAULT_LIMITS, ReadLimits

PHOTO = photo()
FULL = tags(PHOTO)
BYTES = PHOTO.tobytes()


def refused(pages: Sequence[Tags], pixels: bytes = BYTES, **options: bool) -> tuple[str, str]:
    """Return the code and text of the error that parsing a TIFF of these pages raises."""
    return refusal(tiff_file(pages, pixels, **options))


def refusal(data: bytes) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        parse(data, DEFAULT_LIMITS)
    assert "\n" not in str(caught.value)
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("loop", [False, True])
def test_both_byte_orders_and_both_sizes_of_offsets(order: str, big: bool, loop: bool) -> None:
    container = parse(tiff_file([FULL, tags(photo(9, 9))], BYTES, order, big, loop), DEFAULT_LIMITS)
    assert (container.format, container.width, container.height, container.isolated) == ("tiff", 48, 32, True)
    image = decode(tiff_file([FULL, FULL], BYTES, order, big, loop))
    np.testing.assert_array_equal(image.pixels, PHOTO)


def in_strips(rows: int) -> tuple[Tags, bytes]:
    parts = [PHOTO[top : top + rows].tobytes() for top in range(0, 32, rows)]
    starts = np.cumsum([START, *map(len, parts[:-1])]).tolist()
    return FULL | {273: (4, starts), 278: (3, [rows]), 279: (4, list(map(len, parts)))}, BYTES


def in_planes() -> tuple[Tags, bytes]:
    plane = 48 * 32
    where = {273: (4, [START + n * plane for n in range(3)]), 279: (4, [plane] * 3), 284: (3, [2])}
    return FULL | where, PHOTO.transpose(2, 0, 1).tobytes()


def in_tiles() -> tuple[Tags, bytes]:
    tiles = [PHOTO[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32)]
    page = {tag: value for tag, value in FULL.items() if tag not in (273, 278, 279)}
    where = {324: (4, [START + 768 * n for n in range(6)]), 325: (4, [768] * 6)}
    return page | {322: (3, [16]), 323: (3, [16])} | where, b"".join(tiles)


LAYOUTS = {"strips": in_strips(7), "rows": in_strips(1), "planes": in_planes(), "tiles": in_tiles()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_strips_planes_and_tiles_are_found(name: str) -> None:
    page, pixels = LAYOUTS[name]
    np.testing.assert_array_equal(decode(tiff_file([page], pixels)).pixels, PHOTO)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("part", [0, 1])
def test_a_part_beyond_the_file_is_truncated(name: str, part: int) -> None:
    """Only the last byte of a part is missing, or the whole part."""
    page, pixels = LAYOUTS[name]
    tag = 324 if 324 in page else 273
    kind, starts = page[tag]
    data = tiff_file([page], pixels)
    end = len(data) - page[tag + 1 if tag == 324 else 279][1][-1] + 1 if part else 2**31
    code, text = refused([page | {tag: (kind, [*starts[:-1], end])}], pixels)
    assert code == "truncated"
    assert f"of {len(starts)}" in text


def test_missing_parts_are_truncated() -> None:
    page, pixels = in_strips(4)
    assert refused([page | {273: (4, page[273][1][:5])}], pixels) == (
        "truncated",
        "tiff: 3 of 8 parts are not there",
    )
    assert refused([page | {273: (4, [0] * 8)}], pixels)[0] == "truncated"  # "sparse" files leave parts out so


def test_byte_counts_may_be_missing_or_too_small_without_compression() -> None:
    """Old writers leave them out. The size of the image tells them."""
    for counts in ({}, {279: (4, [0])}, {279: (4, [5])}):
        page = {tag: value for tag, value in FULL.items() if tag != 279} | counts
        np.testing.assert_array_equal(decode(tiff_file([page], BYTES)).pixels, PHOTO)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({258: (3, [32] * 3), 339: (3, [3] * 3)}, "floating-point samples of 32 bits"),
        ({258: (3, [64] * 3), 339: (3, [3] * 3)}, "floating-point samples of 64 bits"),
        ({339: (3, [2] * 3)}, "signed samples of 8 bits"),
        ({339: (3, [1, 1, 2])}, "signed samples"),
        ({258: (3, [64] * 3), 339: (3, [6] * 3)}, "complex samples"),
        ({258: (3, [32] * 3)}, "samples of 32 bits"),
        ({258: (3, [10] * 3)}, "samples of 10 bits"),
        ({262: (3, [8])}, "CIE Lab"),
        ({262: (3, [32845])}, "LogLuv"),
        ({262: (3, [4])}, "a mask"),
        ({262: (3, [77])}, "photometric interpretation 77"),
        ({277: (3, [40]), 258: (3, [8] * 40)}, "40 samples a pixel"),
    ],
)
def test_pixels_without_an_8_bit_rgb_are_unsupported(changed: Tags, words: str) -> None:
    code, text = refused([FULL | changed], 8 * BYTES)
    assert code == "unsupported_mode"
    assert words in text


def test_layouts_that_only_the_decoder_lacks_are_unsupported_too() -> None:
    """Grey with alpha in 16 bits is fine by the specification, and Pillow has no name for it."""
    page = tags(photo()[..., :2].astype(np.uint16)) | {262: (3, [1]), 338: (3, [2])}
    with pytest.raises(ImageError) as caught:
        decode(tiff_file([page], 2 * BYTES))
    assert caught.value.code == "unsupported_mode"


def test_a_compression_that_cannot_be_read_is_named() -> None:
    code, text = refused([FULL | {259: (3, [34712])}])
    assert code == "unsupported_format"
    assert "compression 34712" in text


MOSAIC = tags(photo()[..., 0]) | {262: (3, [32803])}
THUMBNAIL = tags(photo()) | {254: (4, [1])}


def make(name: str) -> Tags:
    return {271: (2, [*name.encode(), 0])}


@pytest.mark.parametrize(
    ("pages", "kind"),
    [
        ([FULL | {50706: (1, [1, 4, 0, 0])}], "DNG"),
        ([THUMBNAIL | {50706: (1, [1, 4, 0, 0]), 330: (4, [1])}, MOSAIC], "DNG"),
        ([THUMBNAIL | make("NIKON CORPORATION") | {330: (4, [1, 2])}, FULL, MOSAIC], "Nikon NEF"),
        ([FULL | make("SONY") | {330: (4, [1])}, MOSAIC], "Sony ARW"),
        ([MOSAIC | make("PENTAX Corporation ")], "Pentax PEF"),
        ([FULL | make("SAMSUNG"), THUMBNAIL, MOSAIC], "Samsung SRW"),
        ([FULL | make("Nobody"), MOSAIC], "unknown camera"),
        ([FULL | {330: (4, [1])}, FULL | {262: (3, [34892])}], "unknown camera"),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_camera_raw_is_refused_wherever_its_sensor_is(pages: list[Tags], kind: str, order: str) -> None:
    code, text = refusal(tiff_file(pages, BYTES, order))
    assert code == "unsupported_format"
    assert text.startswith(f"this is a camera raw ({kind})")
    assert "convert it to JPEG or TIFF with your raw developer" in text


def test_a_canon_raw_is_known_by_its_header() -> None:
    data = bytearray(tiff_file([FULL], b""))
    place = int.from_bytes(data[4:8], "little")
    page = data[place:]
    data = bytearray(b"II*\0\x10\0\0\0CR\x02\0\0\0\0\0") + page
    assert "Canon CR2" in refusal(bytes(data))[1]


def test_a_picture_that_a_camera_s_maker_developed_is_read() -> None:
    """An exported TIFF names the camera, and may hold a thumbnail as well."""
    page = FULL | make("NIKON CORPORATION") | {330: (4, [1]), 34665: (4, [8])}
    np.testing.assert_array_equal(decode(tiff_file([page, THUMBNAIL], BYTES)).pixels, PHOTO)


def test_a_thumbnail_in_front_of_another_page_is_refused() -> None:
    for first in (THUMBNAIL, FULL | {255: (3, [2])}):
        code, text = refused([first, FULL])
        assert code == "unsupported_format"
        assert "reduced version of another page" in text
        assert decode(tiff_file([first], BYTES)).width == 48  # it is all there is


def test_metadata_decide_nothing() -> None:
    """Fields of wrong types, beyond the file, or long ones: the decoder does not see them."""
    odd = {
        270: (2, [65] * 100_000),
        282: (2, [65, 66, 0]),  # a resolution in letters
        296: (3, [3]),
        305: (12, [float("nan")]),
        34675: (6, [-1] * 9),
        65000: (16, [2**60]),
    }
    for big in (False, True):
        page = FULL | odd if big else FULL | {tag: value for tag, value in odd.items() if tag < 65000}
        data = tiff_file([page], BYTES, big=big)
        np.testing.assert_array_equal(decode(data).pixels, PHOTO)
    container = parse(data, DEFAULT_LIMITS)
    assert Image.open(io.BytesIO(container.data)).tag_v2.keys() == FULL.keys()


def test_pixels_are_counted_before_anything_is_decoded() -> None:
    small = ReadLimits(max_pixels=48 * 32 - 1)
    with pytest.raises(ImageError, match="tiff of 48 x 32") as caught:
        parse(tiff_file([FULL], BYTES), small)
    assert caught.value.code == "too_many_pixels"
    assert refused([FULL | {256: (4, [2**32 - 1]), 257: (4, [2**32 - 1])}])[0] == "too_many_pixels"
    assert refused([FULL | {257: (3, [0])}])[0] == "corrupt"


def test_millions_of_offsets_are_refused_without_reading_them() -> None:
    """Four million strips of one pixel: as numbers in Python they would take gigabytes."""
    number = 4_000_000
    page = FULL | {256: (4, [1]), 257: (4, [number]), 278: (3, [1])}
    page |= {273: (4, [START] * 3), 279: (4, [1] * 3)}
    data = bytearray(tiff_file([page], BYTES))
    for tag in (273, 279):
        at = data.index(tag.to_bytes(2, "little") + b"\x04\0\x03\0\0\0")
        data[at + 4 : at + 8] = number.to_bytes(4, "little")
    data += bytes(4 * number)
    tracemalloc.start()
    code, _ = refusal(bytes(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert code == "too_much_memory"
    assert peak < 2 * len(data)


def test_a_directory_with_a_field_twice_is_corrupt() -> None:
    """Pillow takes the last one and libtiff the first."""
    data = bytearray(tiff_file([FULL], BYTES))
    at = data.index(b"\x01\x01\x03\0\x01\0\0\0")
    data[at : at + 2] = b"\0\x01"  # the height is a second width
    assert refusal(bytes(data)) == ("corrupt", "tiff: its first directory has tag 256 twice")


def test_a_directory_that_is_not_there_is_truncated() -> None:
    for data in (b"II*\0", b"II*\0\xff\xff\xff\x7f", b"MM\0+\0\x08\0\0", tiff_file([FULL], BYTES)[:-30]):
        assert refusal(data)[0] == "truncated"


def test_circles_of_directories_come_to_an_end() -> None:
    own = 2**31 + 1
    data = tiff_file([FULL | {330: (4, [1, 2, 1])}, FULL | {330: (4, [own])}, THUMBNAIL], BYTES, loop=True)
    data = data.replace(own.to_bytes(4, "little"), data[4:8])
    assert parse(data, DEFAULT_LIMITS).width == 48


WHOLE = {name: data for name, data in valid().items() if name.startswith("tiff")}
WHOLE |= {name: tiff_file([page], pixels) for name, (page, pixels) in LAYOUTS.items()}
WHOLE["big"] = tiff_file([FULL | {330: (4, [1])}, FULL], BYTES, ">", True)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
def test_flipped_bytes_of_directories_give_a_container_or_an_image_error(
    name: str, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(WHOLE[name])
    place = len(data) - 400 if name in LAYOUTS or name == "big" else 0
    for at, value in flips:
        data[min(len(data) - 1, max(0, place + at))] = value
    try:
        container = parse(bytes(data), ReadLimits(max_pixels=100_000))
    except ImageError:
        return
    assert container.width * container.height <= 100_000
    assert container.memory <= DEFAULT_LIMITS.max_memory


KINDS = itertools.product(["L", "RGB", "CMYK", "I;16"], [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg"])


@pytest.mark.parametrize(("mode", "compression"), [kind for kind in KINDS if kind != ("I;16", "jpeg")])
def test_the_bound_on_memory_holds(mode: str, compression: str | None) -> None:
    """A child gets no more than the bound and a little, so it is enough if the image decodes."""
    data = encoded(Image.new(mode, (4000, 2000)), "TIFF", compression=compression)
    assert decode(data).width == 4000
    held = {"L": 1, "I;16": 2}.get(mode, 4)  # bytes of a pixel in Pillow
    bound = parse(data, DEFAULT_LIMITS).memory
    assert bound > 4000 * 2000 * (held + 3) + len(data)
    exif = Image.Exif()
    exif[274] = 6
    turned = encoded(Image.new(mode, (4000, 2000)), "TIFF", compression=compression, exif=exif)
    assert parse(turned, DEFAULT_LIMITS).memory >= bound + 4000 * 2000 * held  # a copy that is turned

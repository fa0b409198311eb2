"""GIF: the first image counts, where it lies on the screen, and only if all its pixels are there."""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers.stills import control, picture, plain_lzw, screen, sub_blocks
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import parse
from mdmf_deploy.images.decode import decode, decode_boxes
from mdmf_deploy.images.limits import DEFAULT_LIMITS

COLOURS = np.random.default_rng(0).integers(0, 255, (128, 3), np.uint8)
TABLE = COLOURS.tobytes()
INDICES = np.random.default_rng(1).integers(0, 128, (9, 12), np.uint8)
WHOLE = picture((0, 0, 12, 9), INDICES.tobytes())


def code(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.code


def test_the_area_that_no_frame_covers_is_white() -> None:
    data = screen(20, 30, TABLE) + picture((5, 7, 12, 9), INDICES.tobytes()) + WHOLE + b";"
    expected = np.full((30, 20, 3), 255, np.uint8)
    expected[7:16, 5:17] = COLOURS[INDICES]
    image = decode(data)
    assert (image.width, image.height) == (20, 30)
    np.testing.assert_array_equal(image.pixels, expected)
    boxes = [
        (0, 0, 20, 30),
        (3, 5, 9, 11),
        (0, 0, 5, 7),
        (17, 0, 20, 30),
        (0, 0, 3, 3),
        (18, 20, 20, 30),
        (6, 8, 9, 12),
        (10, 10, 20, 30),
    ]
    found = decode_boxes(data, lambda height, width: boxes).boxes
    for (left, top, right, bottom), pixels in zip(boxes, found, strict=True):
        np.testing.assert_array_equal(pixels, expected[top:bottom, left:right])


def test_a_frame_over_the_edge_enlarges_the_screen_as_pillow_does() -> None:
    data = screen(8, 30, TABLE) + picture((5, 0, 12, 9), INDICES.tobytes()) + b";"
    image = decode(data)
    assert (image.width, image.height) == Image.open(io.BytesIO(data)).size == (17, 30)
    np.testing.assert_array_equal(image.pixels[:9, 5:], COLOURS[INDICES])
    huge = picture((0, 0, 65_000, 65_000), b"")
    assert code(screen(12, 9, TABLE) + huge + b";") == "too_many_pixels"
    np.testing.assert_array_equal(decode(screen(12, 9, TABLE) + WHOLE + huge + b";").pixels, COLOURS[INDICES])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 1), (1, 4), (4, 5), (5, 6)])
def test_every_missing_pixel_is_noticed(size: tuple[int, int], interlaced: bool) -> None:
    width, height = size
    pixels = np.random.default_rng(2).integers(0, 128, (height, width), np.uint8)
    order = [y for first, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(first, height, step)]
    stored = (pixels[order] if interlaced else pixels).tobytes()
    for end in (True, False):
        for count in range(len(stored) + 1):
            part = picture((0, 0, width, height), stored[:count], interlaced=interlaced, end=end)
            data = screen(width, height, TABLE) + part + b";"
            if count < len(stored):
                assert code(data) == "truncated"
            else:
                np.testing.assert_array_equal(decode(data).pixels, COLOURS[pixels])


def test_the_last_control_before_the_image_decides_what_is_transparent() -> None:
    first = int(INDICES[0, 0])
    for controls, white in (
        (control(first), True),
        (control(None) + control(first), True),
        (control(first) + control(None), False),
        (control((first + 1) % 128), False),
    ):
        pixels = decode(screen(12, 9, TABLE) + controls + WHOLE + control(first) + b";").pixels
        np.testing.assert_array_equal(pixels[0, 0], [255] * 3 if white else COLOURS[first])


def test_extensions_cost_nothing() -> None:
    flood = b"!\xfe" + sub_blocks(bytes(5000), 1) + (b"!\xff\x0bNETSCAPE2.0\0" + control(None)) * 2000
    plain = parse(screen(12, 9, TABLE) + WHOLE + b";", DEFAULT_LIMITS)
    found = parse(screen(12, 9, TABLE) + flood + b"\0\0" + WHOLE + flood + b";", DEFAULT_LIMITS)
    assert (found.data, found.memory) == (plain.data, plain.memory)


def test_the_colours_are_those_of_the_image_if_it_has_its_own() -> None:
    greys = np.repeat(np.arange(128, dtype=np.uint8), 3).tobytes()
    for shared, own in ((TABLE, greys), (greys, TABLE), (b"", TABLE)):
        data = screen(12, 9, shared) + picture((0, 0, 12, 9), INDICES.tobytes(), own) + b";"
        colours = np.frombuffer(own, np.uint8).reshape(-1, 3)
        np.testing.assert_array_equal(decode(data).pixels, colours[INDICES])


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (b";", "corrupt"),
        (b"", "truncated"),
        (picture((0, 0, 0, 9), b"") + b";", "corrupt"),
        (picture((0, 0, 12, 0), b"") + b";", "corrupt"),
        (WHOLE[:10], "truncated"),
        (WHOLE[:11], "truncated"),
        (b"!\xfe\x09abc", "truncated"),
    ],
)
def test_a_file_without_an_image_has_a_code(rest: bytes, expected: str) -> None:
    assert code(screen(12, 9, TABLE) + rest) == expected


def test_the_end_of_a_cut_block_is_no_pixel() -> None:
    codes = plain_lzw(INDICES.tobytes())
    for kept in range(1, len(codes) - 1):
        cut = WHOLE[:11] + bytes([len(codes)]) + codes[:kept]
        assert code(screen(12, 9, TABLE) + cut) == "truncated"
    assert decode(screen(12, 9, TABLE) + WHOLE[:11] + bytes([len(codes)]) + codes[:-1]).width == 12


def test_an_image_of_many_blocks_is_whole_until_it_is_cut() -> None:
    indices = np.random.default_rng(3).integers(0, 128, (160, 200), np.uint8)
    data = screen(200, 160, TABLE) + picture((0, 0, 200, 160), indices.tobytes())
    np.testing.assert_array_equal(decode(data).pixels, COLOURS[indices])
    np.testing.assert_array_equal(decode(data[:-2]).pixels, COLOURS[indices])  # without terminator and trailer
    for missing in (3, 4, 300, 256 * 64, 256 * 64 + 70, len(data) - 256 * 64 - 405, len(data) - 405):
        assert code(data[:-missing]) == "truncated"


def test_too_many_blocks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.images.containers.gif.MOST_PARTS", 300)
    assert decode(screen(12, 9, TABLE) + b"!\xfe" + sub_blocks(bytes(200), 1) + WHOLE + b";").width == 12
    assert code(screen(12, 9, TABLE) + b"!\xfe" + sub_blocks(bytes(301), 1) + WHOLE + b";") == "too_slow"
    assert code(screen(12, 9, TABLE) + b"!\xfe\0" * 301 + WHOLE + b";") == "too_slow"

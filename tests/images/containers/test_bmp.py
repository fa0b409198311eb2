"""BMP: valid layouts that cannot be read are named, and missing pixels are noticed."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from helpers.bad_inputs import encoded, photo
from helpers.stills import bmp_of

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import parse
from mdmf_deploy.images.decode import decode
from mdmf_deploy.images.limits import DEFAULT_LIMITS

ROWS = photo(6, 4)[::-1, :, ::-1]  # from the bottom up, blue first
PIXELS = b"".join(row.tobytes() + b"\0\0" for row in ROWS)
PALETTE = np.random.default_rng(0).integers(0, 255, (256, 4), np.uint8)
BITFIELDS, RLE8, RLE4 = 3, 1, 2


def code(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.code


def masks(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


@pytest.mark.parametrize(
    "data",
    [
        bmp_of(4, 4, 0, encoded(photo(4, 4), "PNG"), compression=5),
        bmp_of(4, 4, 24, encoded(photo(4, 4), "JPEG"), compression=4),
        bmp_of(4, 4, 16, bytes(32), compression=BITFIELDS, size=56, extra=masks(0xF00, 0xF0, 0xF, 0xF000)),
        bmp_of(4, 4, 32, bytes(64), compression=BITFIELDS, extra=masks(0x3FF00000, 0xFFC00, 0x3FF)),
        bmp_of(4, 4, 16, bytes(32), compression=6, extra=masks(0xF00, 0xF0, 0xF, 0xF000)),
        bmp_of(4, 4, 32, bytes(64), compression=11),
        bmp_of(4, 4, 24, bytes(64), compression=4, size=64, extra=bytes(24)),
        bmp_of(4, 4, 1, bytes(64), compression=3, size=64, extra=bytes(24)),
        bmp_of(4, 4, 2, bytes(64), extra=bytes(16)),
        bmp_of(4, 4, 64, bytes(128)),
        bmp_of(4, 4, 24, bytes(64), size=16),
    ],
)
def test_valid_layouts_that_cannot_be_read_are_no_damage(data: bytes) -> None:
    assert code(data) == "unsupported_mode"


@pytest.mark.parametrize(
    "data",
    [
        bmp_of(0, 4, 24, PIXELS),
        bmp_of(-6, 4, 24, PIXELS),
        bmp_of(6, 0, 24, PIXELS),
        bmp_of(6, 4, 7, PIXELS),
        bmp_of(6, 4, 24, PIXELS, compression=99),
        bmp_of(6, 4, 24, PIXELS, compression=RLE8),
        bmp_of(6, 4, 24, PIXELS, size=41, extra=b"\0")[:14] + b"\xff\0\0\0" + PIXELS * 9,
    ],
)
def test_headers_that_make_no_sense_are_corrupt(data: bytes) -> None:
    assert code(data) == "corrupt"


def test_colours_come_out_from_the_bottom_up_and_from_the_top_down() -> None:
    np.testing.assert_array_equal(decode(bmp_of(6, 4, 24, PIXELS)).pixels, photo(6, 4))
    np.testing.assert_array_equal(decode(bmp_of(6, -4, 24, PIXELS)).pixels, photo(6, 4)[::-1])


def test_an_old_header_is_read() -> None:
    data = b"BM" + struct.pack("<IHHIIHHHH", 0, 0, 0, 26, 12, 6, 4, 1, 24) + PIXELS
    np.testing.assert_array_equal(decode(data).pixels, photo(6, 4))


def test_alpha_of_bit_fields_is_laid_over_white_and_without_a_mask_it_is_no_alpha() -> None:
    alpha = np.full((4, 6, 1), 51, np.uint8)
    pixels = np.concatenate([ROWS, alpha], -1).tobytes()
    fields = (0xFF0000, 0xFF00, 0xFF)
    with_alpha = bmp_of(6, 4, 32, pixels, compression=BITFIELDS, size=56, extra=masks(*fields, 0xFF000000))
    expected = (51 * photo(6, 4).astype(int) + 204 * 255) / 255
    assert np.abs(decode(with_alpha).pixels - expected).max() <= 0.5
    for opaque in (
        bmp_of(6, 4, 32, pixels),
        bmp_of(6, 4, 32, pixels, compression=BITFIELDS, extra=masks(*fields)),
        bmp_of(6, 4, 32, pixels, compression=BITFIELDS, size=52, extra=masks(*fields)),
    ):
        np.testing.assert_array_equal(decode(opaque).pixels, photo(6, 4))


@pytest.mark.parametrize("bits", [1, 4, 8, 16, 24, 32])
@pytest.mark.parametrize("height", [4, -4])
def test_every_missing_byte_of_a_pixel_is_noticed_and_padding_is_none(bits: int, height: int) -> None:
    row, used = (6 * bits + 31) // 32 * 4, -(-6 * bits // 8)
    palette = PALETTE[: 2**bits].tobytes() if bits <= 8 else b""
    data = bmp_of(6, height, bits, np.random.default_rng(1).bytes(4 * row), extra=palette)
    whole = decode(data + b"trailer").pixels
    for missing in range(row - used + 1):
        np.testing.assert_array_equal(decode(data[: len(data) - missing]).pixels, whole)
    for missing in range(row - used + 1, 4 * row):
        assert code(data[:-missing]) == "truncated"


def runs(bits: int, packed: bytes) -> bytes:
    compression = {8: RLE8, 4: RLE4}[bits]
    return bmp_of(4, 3, bits, packed, compression=compression, extra=PALETTE[: 2**bits].tobytes())


@pytest.mark.parametrize(
    ("bits", "packed", "indices"),
    [
        (8, b"\4\1\0\0\0\4\1\2\3\4\0\0\4\7\0\1", [[7] * 4, [1, 2, 3, 4], [1] * 4]),
        (4, b"\4\x12\0\0\0\4\x12\x34\0\0\4\x77\0\1", [[7] * 4, [1, 2, 3, 4], [1, 2, 1, 2]]),
        (8, b"\2\1\0\0\0\4\1\2\3\4\0\0\1\7\0\0\0\1", [[7, 0, 0, 0], [1, 2, 3, 4], [1, 1, 0, 0]]),  # rows end early
    ],
)
def test_runs_are_decoded_apart_and_like_opencv(bits: int, packed: bytes, indices: list[list[int]]) -> None:
    data = runs(bits, packed)
    pixels = decode(data).pixels
    np.testing.assert_array_equal(pixels, PALETTE[np.array(indices), 2::-1])
    assert parse(data, DEFAULT_LIMITS).isolated
    assert not parse(bmp_of(6, 4, 24, PIXELS), DEFAULT_LIMITS).isolated
    cv2 = pytest.importorskip("cv2")
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], pixels)


def test_runs_that_end_before_the_last_row_are_truncated() -> None:
    for packed in (b"\4\1\0\0\4\2\0\1", b"\4\1\0\0\4\2", b"\4\1\0\0\0\4\1", b"\4\1\0\0\0\2", b""):
        assert code(runs(8, packed)) == "truncated"

"""PNG: only the chunks that pixels depend on count, and pixels that are missing are noticed."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from helpers.bad_inputs import encoded, filtered, photo
from helpers.stills import CHANNELS, chunk, header, png_of, scan_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import parse
from mdmf_deploy.images.decode import ReadLimits, decode
from mdmf_deploy.images.limits import DEFAULT_LIMITS

RGB = header(48, 32, 8, 2)
IDAT = chunk(b"IDAT", zlib.compress(filtered(photo())))
END = chunk(b"IEND", b"")
TEXT = b"workflow\0\0" + zlib.compress(bytes(3 * 2**20))
PALETTE = chunk(b"PLTE", bytes(range(12)))
LAYOUTS = [
    (c, d) for c, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2), 4: (8,), 6: (8, 16)}.items() for d in depths
]


def code(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.code


def packed(lines: bytes) -> bytes:
    return chunk(b"IDAT", zlib.compress(lines))


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[274] = orientation
    return tags.tobytes()[6:]


DROPPED = {
    "text-bomb": chunk(b"zTXt", TEXT),
    "profile-bomb": chunk(b"iCCP", TEXT),
    "wrong-checksum": chunk(b"tEXt", b"a\0b", wrong=1),
    "bad-gamma": chunk(b"gAMA", b""),
    "animation": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", bytes(26)) + chunk(b"fdAT", bytes(9)),
    "no-frames": chunk(b"acTL", bytes(8)),
    "cut-control": chunk(b"acTL", b""),
    "suggested-palette": chunk(b"PLTE", b"odd!", wrong=1),
    "unknown": chunk(b"ruBB", bytes(99)) * 500,
}


@pytest.mark.parametrize("name", DROPPED)
def test_chunks_that_hold_no_pixels_count_for_nothing(name: str) -> None:
    plain = parse(png_of(RGB, IDAT, END), DEFAULT_LIMITS)
    for data in (
        png_of(RGB, DROPPED[name], IDAT, END),
        png_of(RGB, IDAT, DROPPED[name], END),
        png_of(RGB, IDAT, END, DROPPED[name]),
    ):
        found = parse(data, DEFAULT_LIMITS)
        assert len(found.data) == len(plain.data)
        assert found.memory == plain.memory
        np.testing.assert_array_equal(decode(data).pixels, photo())


def test_pixels_may_lie_in_many_chunks_with_others_between() -> None:
    packed = zlib.compress(filtered(photo()))
    parts = [chunk(b"IDAT", packed[at : at + 7]) + chunk(b"IDAT", b"") for at in range(0, len(packed), 7)]
    np.testing.assert_array_equal(decode(png_of(RGB, *parts, END)).pixels, photo())
    np.testing.assert_array_equal(decode(png_of(RGB, DROPPED["wrong-checksum"].join(parts), END)).pixels, photo())


@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize(("colour", "depth"), LAYOUTS)
def test_every_missing_line_is_noticed_in_every_layout(colour: int, depth: int, interlace: bool) -> None:
    palette = PALETTE if colour == 3 else b""
    for width, height in ((1, 1), (2, 1), (1, 5), (9, 1), (9, 4), (70, 5)):
        values = np.random.default_rng(width).integers(0, 2**depth, (height, width, CHANNELS[colour]), np.uint16)
        lines = scan_lines(values, depth, interlace)
        head = header(width, height, depth, colour, interlace) + palette
        straight = header(width, height, depth, colour) + palette
        same = png_of(straight, packed(b"".join(scan_lines(values, depth))), END)
        np.testing.assert_array_equal(decode(png_of(head, packed(b"".join(lines)), END)).pixels, decode(same).pixels)
        for count in range(len(lines)):
            assert code(png_of(head, packed(b"".join(lines[:count])), END)) == "truncated"
        assert code(png_of(head, packed(b"".join(lines)[:-1]), END)) == "truncated"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_an_image_that_happens_to_end_like_any_mark_is_whole(width: int, height: int, random: object) -> None:
    values = np.random.default_rng(random.getrandbits(32)).integers(0, 2, (height, width, 1))  # type: ignore[attr-defined]
    lines = scan_lines(values, 1)
    data = png_of(header(width, height, 1, 0), packed(b"".join(lines)), END)
    np.testing.assert_array_equal(decode(data).pixels[..., :1], 255 * values)
    short = png_of(header(width, height, 1, 0), packed(b"".join(lines[:-1])), END)
    assert code(short) == "truncated"


def test_pixels_decide_and_not_the_end_of_their_stream() -> None:
    stream = zlib.compress(filtered(photo()))
    np.testing.assert_array_equal(decode(png_of(RGB, chunk(b"IDAT", stream[:-4]))).pixels, photo())
    np.testing.assert_array_equal(decode(png_of(RGB, chunk(b"IDAT", stream + bytes(99)), END)).pixels, photo())
    for cut in (stream[:-8], stream[:100], b""):
        assert code(png_of(RGB, chunk(b"IDAT", cut), END)) == "truncated"
    damaged = bytearray(stream)
    damaged[2] |= 0b110  # a type of block that deflate has not
    assert code(png_of(RGB, chunk(b"IDAT", bytes(damaged)), END)) == "corrupt"


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ((RGB, DROPPED["no-frames"], END), "corrupt"),
        ((RGB, DROPPED["no-frames"]), "truncated"),
        ((IDAT, RGB, END), "corrupt"),
        ((RGB, RGB, IDAT, END), "corrupt"),
        ((DROPPED["unknown"], RGB, IDAT, END), "corrupt"),
        ((RGB, chunk(b"\0\1\2\3", b""), IDAT, END), "corrupt"),
        ((header(48, 32, 3, 2), IDAT, END), "corrupt"),
        ((header(48, 0, 8, 2), IDAT, END), "corrupt"),
        ((header(48, 32, 8, 3), IDAT, END), "corrupt"),  # no palette
        ((header(48, 32, 8, 3), chunk(b"PLTE", bytes(6), wrong=1), IDAT, END), "corrupt"),
        ((header(48, 32, 8, 3), chunk(b"PLTE", bytes(5)), IDAT, END), "corrupt"),
        ((chunk(b"CgBI", bytes(4)), RGB, IDAT, END), "unsupported_mode"),
    ],
)
def test_a_file_that_makes_no_sense_has_a_code(chunks: tuple[bytes, ...], expected: str) -> None:
    assert code(png_of(*chunks)) == expected


@pytest.mark.parametrize(
    "bad", [chunk(b"tRNS", bytes(6), wrong=1), chunk(b"tRNS", bytes(5)), chunk(b"tRNS", bytes(7)), chunk(b"tRNS", b"")]
)
def test_a_bad_colour_key_is_left_out(bad: bytes) -> None:
    black = chunk(b"IDAT", zlib.compress(filtered(np.zeros((32, 48, 3), np.uint8))))
    assert not decode(png_of(RGB, bad, black, END)).pixels.any()
    assert not decode(png_of(RGB, black, chunk(b"tRNS", bytes(6)), END)).pixels.any()  # too late
    assert decode(png_of(RGB, chunk(b"tRNS", bytes(6)), black, END)).pixels.all()


def test_only_an_exif_chunk_turns_the_image() -> None:
    turned = chunk(b"eXIf", exif(3))
    for data in (png_of(RGB, turned, IDAT, END), png_of(RGB, IDAT, turned, END)):
        np.testing.assert_array_equal(decode(data).pixels, photo()[::-1, ::-1])
    raw = PngImagePlugin.PngInfo()
    raw.add_text("Raw profile type exif", "\nexif\n 32\n" + (b"Exif\0\0" + exif(3)).hex())
    raw.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>')
    for data in (
        encoded(photo(), "PNG", pnginfo=raw),
        png_of(RGB, chunk(b"eXIf", exif(3), wrong=1), IDAT, END),
        png_of(RGB, chunk(b"eXIf", exif(9)), IDAT, END),
    ):
        np.testing.assert_array_equal(decode(data).pixels, photo())


def test_rows_cost_memory_too() -> None:
    tall = png_of(header(1, 100_000_000, 8, 0), IDAT, END)
    assert code(tall) == "too_much_memory"
    assert code(png_of(header(100_000_000, 1, 8, 0), IDAT, END)) == "too_much_memory"
    assert parse(png_of(header(10_000, 10_000, 8, 6), IDAT, END), DEFAULT_LIMITS).memory < DEFAULT_LIMITS.max_memory
    with pytest.raises(ImageError, match="--max-memory"):
        decode(png_of(RGB, IDAT, END), ReadLimits(max_memory=2**20))


def test_too_many_chunks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.images.containers.png.MOST_PARTS", 500)
    assert decode(png_of(RGB, IDAT, chunk(b"tEXt", b"") * 497, END)).width == 48
    assert code(png_of(RGB, IDAT, chunk(b"tEXt", b"") * 498, END)) == "too_slow"

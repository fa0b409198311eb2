"""JPEG 2000: known pixels of every kind that is read, and refusal of every other kind before a codec sees it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images import raster
from mdmf_deploy.images.containers import parse
from mdmf_deploy.images.containers.boxes import made
from mdmf_deploy.images.decode import decode
from mdmf_deploy.images.limits import DEFAULT_LIMITS, ReadLimits

pytestmark = pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow cannot read JPEG 2000")
PHOTO = np.random.default_rng(0).integers(0, 256, (48, 80, 3)).astype(np.uint8)
GREY = PHOTO[..., 0]
ALPHA = np.where(np.arange(80) < 40, 255, 0).astype(np.uint8) * np.ones((48, 1), np.uint8)
SIZ = b"\xff\x51"


def written(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG2000", **options)
    return file.getvalue()


def boxed(header: bytes, stream: bytes) -> bytes:
    """Return a JP2 of the boxes in its header and a codestream."""
    signature = made(b"jP  ", b"\r\n\x87\n") + made(b"ftyp", b"jp2 ", bytes(4), b"jp2 ")
    return signature + made(b"jp2h", header) + made(b"jp2c", stream)


def ihdr(components: int, depth: int = 8) -> bytes:
    sides = (48).to_bytes(4, "big") + (80).to_bytes(4, "big")
    return made(b"ihdr", sides, components.to_bytes(2, "big"), bytes([depth - 1, 7, 0, 0]))


def colr(space: int) -> bytes:
    return made(b"colr", b"\1\0\0", space.to_bytes(4, "big"))


def code_of(data: bytes, limits: ReadLimits = DEFAULT_LIMITS) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, limits)
    assert "\n" not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("tiles", [{}, {"tile_size": (32, 32)}, {"tile_size": (33, 17), "num_resolutions": 2}])
def test_lossless_files_give_the_very_pixels(bare: bool, tiles: dict[str, object]) -> None:
    image = decode(written(PHOTO, no_jp2=bare, **tiles))
    np.testing.assert_array_equal(image.pixels, PHOTO)
    assert (image.format, image.width, image.height) == ("jpeg2000", 80, 48)
    np.testing.assert_array_equal(decode(written(GREY, no_jp2=bare, **tiles)).pixels, np.dstack([GREY] * 3))


@pytest.mark.parametrize("bare", [True, False])
def test_alpha_is_laid_over_white(bare: bool) -> None:
    expected = np.where(ALPHA[..., None] > 0, PHOTO, 255)
    np.testing.assert_array_equal(decode(written(np.dstack([PHOTO, ALPHA]), no_jp2=bare)).pixels, expected)
    shown = decode(written(np.dstack([GREY, ALPHA]), no_jp2=bare)).pixels
    np.testing.assert_array_equal(shown, np.dstack([np.where(ALPHA > 0, GREY, 255)] * 3))


def test_of_grey_with_sixteen_bits_the_high_byte_counts() -> None:
    deep = np.random.default_rng(1).integers(0, 65_536, (48, 80)).astype(np.uint16)
    deep[0, :4] = 0, 255, 65_408, 65_535
    np.testing.assert_array_equal(decode(written(deep)).pixels, np.dstack([deep >> 8] * 3))


def test_a_palette_is_looked_up_whatever_describes_its_colours() -> None:
    stream = written(GREY % 4, no_jp2=True)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], np.uint8)
    palette = made(b"pclr", b"\0\4\3\7\7\7", colours.tobytes())
    mapping = made(b"cmap", b"".join(bytes([0, 0, 1, channel]) for channel in range(3)))
    profile = made(b"colr", b"\2\0\0", bytes(16), b"RGB ", bytes(200))
    for described in (colr(16), profile):
        image = decode(boxed(ihdr(1) + described + palette + mapping, stream))
        np.testing.assert_array_equal(image.pixels, colours[GREY % 4])
    assert code_of(boxed(ihdr(1) + colr(17) + palette + mapping, stream)) == "unsupported_mode"


def test_sycc_is_converted_as_pillow_converts_ycbcr() -> None:
    ycc = Image.fromarray(PHOTO).convert("YCbCr")
    data = boxed(ihdr(3) + colr(18), written(np.asarray(ycc), no_jp2=True))
    expected = np.asarray(ycc.convert("RGB")).astype(int)
    np.testing.assert_allclose(decode(data).pixels.astype(int), expected, atol=1)


@pytest.mark.parametrize("space", [12, 14, 11, 9, 13])
def test_cmyk_lab_and_the_like_are_refused(space: int) -> None:
    assert code_of(boxed(ihdr(3) + colr(space), written(PHOTO, no_jp2=True))) == "unsupported_mode"


@pytest.mark.parametrize("space", [b"CMYK", b"Lab "])
def test_profiles_of_another_colour_space_are_refused(space: bytes) -> None:
    profile = made(b"colr", b"\2\0\0", bytes(16), space, bytes(200))
    assert code_of(boxed(ihdr(3) + profile, written(PHOTO, no_jp2=True))) == "unsupported_mode"


@pytest.mark.parametrize("depth", [0x87, 15, 11, 23])
def test_signed_and_deep_colours_are_refused(depth: int) -> None:
    data = written(PHOTO, no_jp2=True)
    assert data[42:45] == bytes([7, 1, 1])
    with pytest.raises(ImageError, match="signed" if depth >= 0x80 else "bits") as caught:
        decode(data[:42] + bytes([depth, 1, 1]) * 3 + data[51:])
    assert caught.value.code == "unsupported_mode"
    assert code_of(data[:42] + bytes([7, 2, 2]) + data[45:]) == "unsupported_mode"


def test_premultiplied_alpha_is_refused() -> None:
    data = written(np.dstack([PHOTO, ALPHA]))
    at = data.index(b"cdef")
    assert data[at + 24 : at + 30] == bytes([0, 3, 0, 1, 0, 0])
    assert code_of(data[: at + 27] + b"\2" + data[at + 28 :]) == "unsupported_mode"


@pytest.mark.parametrize("bare", [True, False])
def test_no_cut_file_passes_for_a_whole_one(bare: bool) -> None:
    data = written(PHOTO, no_jp2=bare, tile_size=(32, 32), irreversible=True)
    for end in range(13, len(data) - 2, 53):
        assert code_of(data[:end]) == "truncated"


def test_the_end_marker_does_not_decide() -> None:
    data = written(PHOTO, no_jp2=True, tile_size=(32, 32))
    assert data.endswith(b"\xff\xd9")
    for end in (data[:-2], data[:-1], data + b"and more"):
        np.testing.assert_array_equal(decode(end).pixels, PHOTO)
    last = data.rindex(b"\xff\x90\0\x0a")
    assert code_of(data[:last] + b"\xff\xd9") in ("truncated", "corrupt")


def test_a_last_tile_without_length_ends_at_the_end_marker() -> None:
    data = written(PHOTO, no_jp2=True)
    at = data.index(b"\xff\x90\0\x0a") + 6
    open_ended = data[:at] + bytes(4) + data[at + 4 :]
    np.testing.assert_array_equal(decode(open_ended).pixels, PHOTO)
    assert code_of(open_ended[:-40]) == "truncated"


def test_sizes_and_tiles_are_checked_before_the_codec_sees_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(raster.READERS, "jpeg2000", lambda source: pytest.fail("the codec saw a bomb"))
    data = written(PHOTO)
    at = data.index(SIZ) + 6
    large = (17_000).to_bytes(4, "big") * 2
    assert code_of(data[:at] + large + data[at + 8 :]) == "too_many_pixels"
    assert code_of(data[:at] + bytes(8) + data[at + 8 :]) == "corrupt"
    # The header of the boxes and that of the codestream disagree.
    assert code_of(data[:at] + (40).to_bytes(4, "big") * 2 + data[at + 8 :]) == "corrupt"
    stream = data[data.index(b"jp2c") + 4 :]
    at = stream.index(SIZ) + 6
    tiles = (1).to_bytes(4, "big") * 2
    wide = (4_000).to_bytes(4, "big") * 2
    assert code_of(stream[:at] + wide + stream[at + 8 : at + 16] + tiles + stream[at + 24 :]) == "corrupt"
    few = (250).to_bytes(4, "big") * 2
    many = stream[:at] + few + stream[at + 8 : at + 16] + tiles + stream[at + 24 :]
    assert code_of(many, ReadLimits(max_memory=2**26)) in ("too_much_memory", "truncated")


def test_memory_counts_small_blocks_precincts_and_layers() -> None:
    plain = parse(written(PHOTO), DEFAULT_LIMITS).memory
    small = parse(written(PHOTO, codeblock_size=(4, 4), num_resolutions=2), DEFAULT_LIMITS).memory
    smaller = parse(
        written(PHOTO, codeblock_size=(4, 4), precinct_size=(8, 8), num_resolutions=2), DEFAULT_LIMITS
    ).memory
    data = written(PHOTO)
    at = data.index(b"\xff\x52") + 6
    layers = parse(data[:at] + b"\xff\xff" + data[at + 2 :], DEFAULT_LIMITS).memory
    assert PHOTO.size < plain < small < smaller
    assert layers > plain + 65_535


def test_comments_cost_nothing() -> None:
    plain = parse(written(PHOTO, comment="a"), DEFAULT_LIMITS)
    assert plain.data == parse(written(PHOTO, comment="b" * 60_000), DEFAULT_LIMITS).data
    assert plain == parse(plain.data, DEFAULT_LIMITS)


def test_floods_of_small_parts_are_refused() -> None:
    data = written(PHOTO, no_jp2=True)
    start, tile = data.index(b"\xff\x52"), data.index(b"\xff\x90")
    assert code_of(data[:start] + b"\xff\x64\0\2" * 70_000 + data[start:]) == "corrupt"
    part = b"\xff\x90\0\x0a\0\0\0\0\0\x0e\0\0\xff\x93"
    assert code_of(data[:tile] + part * 270_000 + data[tile:]) == "corrupt"


SEEDS = [written(PHOTO, tile_size=(32, 32)), written(GREY, no_jp2=True), written(np.dstack([PHOTO, ALPHA]))]


def only_image_errors(data: bytes) -> None:
    try:
        container = parse(data, DEFAULT_LIMITS)
    except ImageError:
        return
    assert container.memory > 0
    assert parse(container.data, DEFAULT_LIMITS).data == container.data


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(12, 300), st.binary(min_size=1, max_size=8)), max_size=4))
def test_damaged_structure_never_raises_anything_else(data: bytes, damage: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(data)
    for at, found in damage:
        damaged[at : at + len(found)] = found
    only_image_errors(bytes(damaged))


@pytest.mark.parametrize("data", SEEDS)
def test_a_cut_at_any_byte_never_raises_anything_else(data: bytes) -> None:
    for end in range(12, 400):
        only_image_errors(data[:end])

"""WebP: the first picture counts, where it lies on the canvas, and the sizes that a file declares must agree."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.bad_inputs import encoded, oriented, photo, rgba
from helpers.stills import extended, frame, riff, riff_chunk, webp_chunks
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import parse
from mdmf_deploy.images.decode import decode, decode_boxes
from mdmf_deploy.images.limits import DEFAULT_LIMITS

LOSSY = webp_chunks(encoded(photo(), "WEBP", quality=90))[b"VP8 "]
LOSSLESS = webp_chunks(encoded(photo(), "WEBP", lossless=True))[b"VP8L"]
ALPHA = webp_chunks(encoded(rgba(), "WEBP", quality=90))  # VP8X, ALPH and VP8
CLEAR = webp_chunks(encoded(rgba(), "WEBP", lossless=True, exact=True))[b"VP8L"]
PIXELS = decode(riff(riff_chunk(b"VP8 ", LOSSY))).pixels
ANIMATED, HAS_ALPHA = 0x02, 0x10
ANIM = riff_chunk(b"ANIM", bytes(6))
PICTURES = {
    "lossy": (riff_chunk(b"VP8 ", LOSSY), encoded(photo(), "WEBP", quality=90)),
    "lossless": (riff_chunk(b"VP8L", LOSSLESS), encoded(photo(), "WEBP", lossless=True)),
    "alpha": (
        riff_chunk(b"ALPH", ALPHA[b"ALPH"]) + riff_chunk(b"VP8 ", ALPHA[b"VP8 "]),
        encoded(rgba(), "WEBP", quality=90),
    ),
    "lossless-alpha": (riff_chunk(b"VP8L", CLEAR), encoded(rgba(), "WEBP", lossless=True, exact=True)),
}


def code(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.code


def flat(width: int, height: int) -> bytes:
    """Return a VP8L chunk of one colour that declares another size. One colour needs no bits for its pixels."""
    body = bytearray(webp_chunks(encoded(Image.new("RGB", (8, 8), (9, 99, 199)), "WEBP", lossless=True))[b"VP8L"])
    body[1:5] = ((width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return riff_chunk(b"VP8L", bytes(body))


@pytest.mark.parametrize("name", PICTURES)
def test_the_first_frame_lies_where_it_says_and_the_rest_is_white(name: str) -> None:
    chunks, still = PICTURES[name]
    later = frame(0, 0, 48, 32, riff_chunk(b"VP8L", LOSSLESS))
    data = riff(extended(70, 50, ANIMATED | HAS_ALPHA), ANIM, frame(6, 10, 48, 32, chunks), later)
    expected = np.full((50, 70, 3), 255, np.uint8)
    expected[10:42, 6:54] = decode(still).pixels
    image = decode(data)
    assert (image.width, image.height) == (70, 50)
    np.testing.assert_array_equal(image.pixels, expected)
    box = decode_boxes(data, lambda height, width: [(0, 0, 30, 20)]).boxes[0]
    np.testing.assert_array_equal(box, expected[:20, :30])
    covering = riff(extended(48, 32, ANIMATED), ANIM, frame(0, 0, 48, 32, chunks), later)
    np.testing.assert_array_equal(decode(covering).pixels, decode(still).pixels)


@pytest.mark.parametrize("name", PICTURES)
def test_metadata_and_later_frames_count_for_nothing(name: str) -> None:
    chunks, still = PICTURES[name]
    noise = riff_chunk(b"ICCP", bytes(99)) + riff_chunk(b"XMP ", b"odd") * 200 + riff_chunk(b"what", b"")
    plain = parse(riff(extended(48, 32, HAS_ALPHA), chunks), DEFAULT_LIMITS)
    for data in (
        riff(extended(48, 32, HAS_ALPHA), noise, chunks, noise),
        riff(extended(48, 32, ANIMATED), noise, ANIM, frame(0, 0, 48, 32, chunks + noise), noise, b"cut", more=9),
    ):
        found = parse(data, DEFAULT_LIMITS)
        assert (found.data, found.memory) == (plain.data, plain.memory)
        np.testing.assert_array_equal(decode(data).pixels, decode(still).pixels)


def test_alpha_behind_the_picture_is_not_the_picture_s() -> None:
    pixels = riff_chunk(b"VP8 ", ALPHA[b"VP8 "])
    data = riff(extended(48, 32, HAS_ALPHA), pixels, riff_chunk(b"ALPH", ALPHA[b"ALPH"]))
    np.testing.assert_array_equal(decode(data).pixels, decode(riff(pixels)).pixels)


def test_pixels_decide_and_not_the_size_of_the_whole() -> None:
    for chunk in (riff_chunk(b"VP8 ", LOSSY), riff_chunk(b"VP8L", LOSSLESS)):
        whole = decode(riff(chunk)).pixels
        np.testing.assert_array_equal(decode(riff(chunk, more=5000)).pixels, whole)
        np.testing.assert_array_equal(decode(riff(chunk) + b"trailer").pixels, whole)
        assert code(riff(chunk)[:-9]) == "truncated"
        assert code(riff(extended(48, 32), chunk)[:-9]) == "truncated"
        assert code(riff(extended(48, 32, ANIMATED), ANIM, frame(0, 0, 48, 32, chunk))[:-9]) == "truncated"
        assert code(riff(extended(48, 32), riff_chunk(b"EXIF", b""), more=900)) == "truncated"


def test_lossy_pixels_that_end_early_are_truncated_if_all_sizes_agree() -> None:
    for kept in range(0, len(LOSSY) - 3, 7):
        assert code(riff(riff_chunk(b"VP8 ", LOSSY[:kept]))) == "truncated"
    alpha = riff_chunk(b"ALPH", ALPHA[b"ALPH"])
    for kept in range(0, len(LOSSY) - 3, 50):
        assert code(riff(extended(48, 32, HAS_ALPHA), alpha, riff_chunk(b"VP8 ", LOSSY[:kept]))) == "truncated"


def test_lossless_pixels_that_end_early_are_an_error_if_all_sizes_agree() -> None:
    for kept in range(0, len(LOSSLESS) - 3, 50):
        assert code(riff(riff_chunk(b"VP8L", LOSSLESS[:kept]))) in ("truncated", "corrupt")


@pytest.mark.parametrize(
    "data",
    [
        riff(extended(49, 32), riff_chunk(b"VP8 ", LOSSY)),
        riff(extended(48, 33), riff_chunk(b"VP8L", LOSSLESS)),
        riff(extended(48, 32, ANIMATED), ANIM, frame(0, 0, 48, 30, riff_chunk(b"VP8 ", LOSSY))),
        riff(extended(48, 32, ANIMATED), ANIM, frame(2, 0, 48, 32, riff_chunk(b"VP8 ", LOSSY))),
        riff(extended(48, 32, ANIMATED), ANIM, frame(0, 0, 48, 32, b"")),
        riff(extended(48, 32, ANIMATED), riff_chunk(b"VP8 ", LOSSY)),
        riff(extended(48, 32)),
        riff(riff_chunk(b"VP8X", b"")),
        riff(riff_chunk(b"junk", b"1234"), riff_chunk(b"VP8 ", LOSSY)),
        riff(riff_chunk(b"VP8 ", b"\1" + LOSSY[1:])),  # no key frame
        riff(riff_chunk(b"VP8 ", bytes([LOSSY[0] | 0b1000]) + LOSSY[1:])),  # a profile that is none
        riff(riff_chunk(b"VP8 ", bytes([LOSSY[0] & 0b1111]) + LOSSY[1:])),  # a frame that is not to be shown
        riff(riff_chunk(b"VP8L", b"\0" + LOSSLESS[1:])),
    ],
)
def test_sizes_and_structures_that_make_no_sense_are_corrupt(data: bytes) -> None:
    assert code(data) == "corrupt"


def test_what_a_few_bytes_may_cost_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode(riff(flat(300, 200))).pixels[199, 299].tolist() == [9, 99, 199]
    monkeypatch.setattr("mdmf_deploy.images.raster.whole", lambda *_: pytest.fail("a bomb reached the decoder"))
    animated = riff(extended(9_000, 9_000, ANIMATED), ANIM, frame(0, 0, 9_000, 9_000, flat(9_000, 9_000)))
    for data, expected in (
        (riff(flat(16_383, 16_383)), "too_many_pixels"),
        (riff(flat(10_000, 10_000)), "too_much_memory"),
        (riff(extended(16_384, 16_384, ANIMATED), ANIM, frame(0, 0, 8, 8, flat(8, 8))), "too_many_pixels"),
        (animated, "too_much_memory"),
    ):
        assert len(data) < 200
        assert code(data) == expected


def test_the_orientation_is_read_behind_the_pixels_too() -> None:
    exif = webp_chunks(oriented("WEBP", 3))[b"EXIF"].removeprefix(b"Exif\0\0")
    turned = PIXELS[::-1, ::-1]
    for before, behind in ((b"", riff_chunk(b"EXIF", exif)), (riff_chunk(b"EXIF", b"Exif\0\0" + exif), b"")):
        data = riff(extended(48, 32, 0x08), before, riff_chunk(b"VP8 ", LOSSY), behind)
        np.testing.assert_array_equal(decode(data).pixels, turned)
        animated = frame(0, 0, 48, 32, riff_chunk(b"VP8 ", LOSSY))
        np.testing.assert_array_equal(
            decode(riff(extended(48, 32, ANIMATED), before, ANIM, animated, behind)).pixels, turned
        )
    np.testing.assert_array_equal(decode(riff(riff_chunk(b"VP8 ", LOSSY), riff_chunk(b"EXIF", exif))).pixels, PIXELS)


def test_too_many_chunks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.images.containers.webp.MOST_PARTS", 300)
    flood = riff_chunk(b"what", b"")
    assert decode(riff(extended(48, 32), flood * 200, riff_chunk(b"VP8 ", LOSSY))).width == 48
    assert code(riff(extended(48, 32), flood * 301, riff_chunk(b"VP8 ", LOSSY))) == "too_slow"
    inside = frame(0, 0, 48, 32, flood * 301 + riff_chunk(b"VP8 ", LOSSY))
    assert code(riff(extended(48, 32, ANIMATED), ANIM, inside)) == "too_slow"

"""Laws of the parsers of PNG, GIF, WebP and BMP that hold for any bytes, and what they say about memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import pytest
from helpers.bad_inputs import encoded, oriented, photo, rgba
from helpers.stills import bmp_of, control, extended, frame, picture, riff, riff_chunk, screen, webp_chunks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import parse
from mdmf_deploy.images.decode import Code, ReadLimits, decode, decode_boxes
from mdmf_deploy.images.limits import DEFAULT_LIMITS

Found = TypeVar("Found")
SMALL = photo(9, 7)
LIMITS = ReadLimits(max_pixels=1_000_000)


def files() -> dict[str, bytes]:
    alpha = Image.fromarray(rgba()[:7, :9])
    moving = {"save_all": True, "append_images": [Image.fromarray(photo(9, 7, 1))], "duration": 40}
    lossless = webp_chunks(encoded(SMALL, "WEBP", lossless=True))[b"VP8L"]
    exif = Image.Exif()
    exif[274] = 6
    return {
        "png": encoded(SMALL, "PNG", exif=exif),
        "png-palette": encoded(Image.fromarray(SMALL).quantize(8), "PNG", transparency=b"\0\1\2"),
        "apng": encoded(SMALL, "PNG", **moving),
        "gif": encoded(SMALL, "GIF", **moving),
        "gif-part": screen(9, 9, bytes(24)) + control(2) + picture((3, 1, 4, 4), bytes(16), interlaced=True) + b";",
        "webp": encoded(SMALL, "WEBP"),
        "webp-lossless": encoded(SMALL, "WEBP", lossless=True),
        "webp-alpha": encoded(alpha, "WEBP"),
        "webp-part": riff(extended(30, 20, 2), frame(4, 6, 9, 7, riff_chunk(b"VP8L", lossless))),
        "bmp": encoded(SMALL, "BMP"),
        "bmp-palette": encoded(Image.fromarray(SMALL).quantize(8), "BMP"),
        "bmp-runs": bmp_of(4, 2, 8, b"\4\1\0\0\0\4\1\2\3\4\0\1", compression=1, extra=bytes(1024)),
    }


FILES = files()


def outcome(work: Callable[[], Found]) -> tuple[str, Found | None]:
    """Return (error code, None) or ("", what the work returns)."""
    try:
        return "", work()
    except ImageError as error:
        return error.code, None


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_truncated_or_has_all_its_pixels(name: str) -> None:
    whole = decode(FILES[name])
    for length in range(12, len(FILES[name])):
        cut = FILES[name][:length]
        code, image = outcome(lambda cut=cut: decode(cut))  # type: ignore[misc]
        assert code in ("", "truncated")
        assert image is None or np.array_equal(image.pixels, whole.pixels)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(2, 2**16), st.sampled_from([0, 1, 127, 128, 255])), min_size=1, max_size=5),
    st.integers(0, 60),
)
def test_flipped_bytes_raise_nothing_but_an_image_error(name: str, flips: list[tuple[int, int]], insert: int) -> None:
    data = bytearray(FILES[name])
    for at, value in flips:
        data[at % len(data)] = value
    data[insert:insert] = data[:insert] if insert > 30 else b""
    code, found = outcome(lambda: parse(bytes(data), LIMITS))
    assert found is not None or code in get_args(Code)
    if found is not None:
        assert found.memory >= 3 * found.width * found.height > 0
        code, image = outcome(lambda: decode(bytes(data), LIMITS))
        assert image is not None or code in get_args(Code)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\xff\0\0\0WEBP", b"RIFF\xff\0\0\0WEBPVP8X", b"BM"]),
    st.binary(max_size=80),
)
def test_arbitrary_bytes_raise_nothing_but_an_image_error(magic: bytes, rest: bytes) -> None:
    code, found = outcome(lambda: parse(magic + rest, LIMITS))
    assert found is not None or code in get_args(Code)


@pytest.mark.parametrize("name", FILES)
def test_what_a_parser_keeps_is_a_file_of_the_same_pixels(name: str) -> None:
    found = parse(FILES[name], DEFAULT_LIMITS)
    again = parse(found.data, DEFAULT_LIMITS)
    assert again.data == found.data
    if found.offset is None:
        assert (again.width, again.height) == (found.width, found.height)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_make_no_difference(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files = (oriented("PNG", orientation), oriented("WEBP", orientation))
    boxes = [(3, 1, 29, 30), (0, 0, 32, 32), (5, 6, 6, 7)]
    whole = [decode(data).pixels for data in files]
    monkeypatch.setattr("mdmf_deploy.images.raster.BAND", 48 * 5)
    for data, pixels in zip(files, whole, strict=True):
        np.testing.assert_array_equal(decode(data).pixels, pixels)
        found = decode_boxes(data, lambda height, width: boxes).boxes
        for (left, top, right, bottom), part in zip(boxes, found, strict=True):
            np.testing.assert_array_equal(part, pixels[top:bottom, left:right])


MEASURE = """
import os, resource, sys
from mdmf_deploy.images.containers import parse
from mdmf_deploy.images.decode import decode
from mdmf_deploy.images.limits import DEFAULT_LIMITS
decode(open(sys.argv[1], "rb").read())
for name in sys.argv[1:]:
    data = open(name, "rb").read()
    if not os.fork():  # a child's peak begins at what its parent has now
        before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
        decode(data)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        print(used, parse(data, DEFAULT_LIMITS).memory, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are measured with fork and /proc")
def test_no_more_memory_is_taken_than_was_said(tmp_path: Path) -> None:
    colour = Image.fromarray(np.tile(photo(600, 400), (4, 4, 1)))  # 2400 x 1600
    clear, grey = colour.copy(), colour.convert("L")
    clear.putalpha(grey)
    indexed = colour.quantize(64, dither=Image.Dither.NONE, method=Image.Quantize.FASTOCTREE)
    exif = Image.Exif()
    exif[274] = 8
    fast = {"compress_level": 1}
    made = {
        "small.png": encoded(photo(), "PNG"),
        "colour.png": encoded(colour, "PNG", **fast),
        "key.png": encoded(colour, "PNG", transparency=(1, 2, 3), **fast),
        "clear.png": encoded(clear, "PNG", exif=exif, **fast),
        "grey.png": encoded(grey, "PNG", transparency=7, **fast),
        "grey16.png": encoded(np.asarray(grey).astype(np.uint16) * 257, "PNG", **fast),
        "indexed.png": encoded(indexed, "PNG", transparency=bytes(range(64)), **fast),
        "tall.png": encoded(Image.new("L", (1, 2_000_000)), "PNG", **fast),
        "wide.png": encoded(Image.new("RGBA", (2_000_000, 1)), "PNG", **fast),
        "indexed.gif": encoded(indexed, "GIF", transparency=3),
        "lossy.webp": encoded(colour, "WEBP", method=0),
        "clear.webp": encoded(clear, "WEBP", method=0),
        "lossless.webp": encoded(clear, "WEBP", lossless=True, method=0, quality=0),
        "colour.bmp": encoded(colour, "BMP"),
        "grey.bmp": encoded(grey, "BMP"),
    }
    paths = []
    for name, data in made.items():
        paths.append(str(tmp_path / name))
        Path(paths[-1]).write_bytes(data)
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(lines) == len(made)
    for name, (used, said) in zip(made, lines, strict=True):
        assert used <= said, f"{name} took {used} bytes, more than {said}"

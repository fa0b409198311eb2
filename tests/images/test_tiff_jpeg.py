"""JPEGs inside TIFF files: pixels that are not there are missed, whatever the directory and the markers say."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.bad_inputs import encoded, photo
from helpers.tiffs import START, tiff_file
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.decode import decode

WIDTH, HEIGHT = 240, 160


def in_jpeg(part: float, end: bytes = b"", tables: bool = False) -> bytes:
    """Return a TIFF of two strips. Of the second, only a part is there, and the directory says so."""
    halves = [encoded(half, "JPEG", quality=90, subsampling=0) for half in np.split(photo(WIDTH, HEIGHT), 2)]
    page: dict[int, tuple[int, list[int]]] = {}
    if tables:
        at = halves[0].index(b"\xff\xdb")
        frame = halves[0].index(b"\xff\xc0")
        page[347] = (7, [*b"\xff\xd8", *halves[0][at:frame], *b"\xff\xd9"])
        halves = [half[:at] + half[frame:] for half in halves]
    halves[1] = halves[1][: int(part * len(halves[1]))] + end
    page |= {
        256: (3, [WIDTH]),
        257: (3, [HEIGHT]),
        258: (3, [8, 8, 8]),
        259: (3, [7]),
        262: (3, [6]),
        273: (4, [START, START + len(halves[0])]),
        277: (3, [3]),
        278: (3, [HEIGHT // 2]),
        279: (4, [len(half) for half in halves]),
        530: (3, [1, 1]),
    }
    return tiff_file([page], b"".join(halves))


@pytest.mark.parametrize("tables", [False, True])
def test_a_strip_whose_pixels_are_there_is_read(tables: bool) -> None:
    pixels = decode(in_jpeg(1, tables=tables)).pixels
    assert np.abs(pixels.astype(int) - photo(WIDTH, HEIGHT)).mean() < 8


@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_strip_that_lacks_pixels_is_truncated(part: float, end: bytes, tables: bool) -> None:
    with pytest.raises(ImageError, match="part 2 of 2 lacks some of its pixels") as caught:
        decode(in_jpeg(part, end, tables))
    assert caught.value.code == "truncated"


def test_files_of_libtiff_are_read() -> None:
    for size, options in (((1000, 700), {"quality": 80}), ((9, 7), {}), ((304, 900), {"strip_size": 304 * 3 * 16})):
        for mode in ("RGB", "L"):
            picture = Image.fromarray(photo(*size)).convert(mode)
            assert decode(encoded(picture, "TIFF", compression="jpeg", **options)).width == size[0]

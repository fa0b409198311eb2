"""A JPEG is judged by the pixels that are there, whatever its markers say."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from helpers.bad_inputs import encoded, photo
from helpers.cut_jpegs import cut, scans, without_end
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.crops import boxes
from mdmf_deploy.images.decode import decode, decode_boxes

SIZE = (150, 117)
KINDS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": "4:4:4", "quality": 90},
    "4:2:2": {"subsampling": "4:2:2", "quality": 60},
    "4:2:0": {"subsampling": "4:2:0", "quality": 95},
    "coarse": {"quality": 5},
    "own tables": {"optimize": True, "quality": 80},
    "restarts": {"restart_marker_blocks": 7},
    "restarts by rows": {"restart_marker_rows": 1, "subsampling": "4:2:0"},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "progressive": {"progressive": True},
    "progressive with restarts": {"progressive": True, "restart_marker_rows": 2},
    "progressive grey": {"progressive": True, "mode": "L"},
}
FILES: dict[str, bytes] = {}
for _name, _options in KINDS.items():
    _picture = Image.fromarray(photo(*SIZE)).convert(_options.get("mode", "RGB"))
    FILES[_name] = encoded(_picture, "JPEG", **{key: value for key, value in _options.items() if key != "mode"})
BASELINE = sorted(name for name in FILES if "progressive" not in name)
PROGRESSIVE = sorted(set(FILES) - set(BASELINE))
central = partial(boxes, size=28)


def outcomes(data: bytes) -> Iterator[str]:
    """Yield the code of decoding all of a file, and of decoding the boxes of the central crop; "ok" for none."""
    for work in (decode, partial(decode_boxes, place=central)):
        try:
            work(data)
        except ImageError as error:
            yield error.code
        else:
            yield "ok"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(BASELINE), st.floats(0, 0.99))
def test_a_baseline_jpeg_whose_scan_is_cut_is_truncated_whatever_closes_it(name: str, share: float) -> None:
    assert list(outcomes(cut(FILES[name], share))) == ["truncated"] * 2


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.sampled_from(PROGRESSIVE), st.integers(0, 99), st.floats(0.1, 0.9))
def test_a_progressive_jpeg_that_is_cut_within_a_scan_is_truncated(name: str, scan: int, share: float) -> None:
    data = FILES[name]
    # Without its last bytes a scan may still have all its blocks, so short scans are left alone.
    places = [(first, after) for first, after in scans(data) if after - first > 50]
    first, after = places[scan % len(places)]
    middle = first + int((after - first) * share)
    closed = data[:middle].removesuffix(b"\xff") + b"\xff\xd9"
    assert list(outcomes(closed)) == ["truncated"] * 2


@pytest.mark.parametrize("name", FILES)
def test_restart_markers_and_fill_bytes_stand_for_no_pixels(name: str) -> None:
    """libjpeg takes a restart marker for the end of the data and goes on in grey."""
    for tail in (b"\xff\xd0", b"\xff\xd0\xff\xd1\xff\xd2", b"\xff\xd0" * 300, b"\xff" * 9):
        for share in (0.1, 0.5):
            closed = cut(FILES[name], share).removesuffix(b"\xff\xd9") + tail + b"\xff\xd9"
            assert (tail, list(outcomes(closed))) == (tail, ["truncated"] * 2)


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}])
def test_the_pixels_below_the_boxes_count_too(options: dict[str, int]) -> None:
    """A large JPEG's rows below the lowest box are not decoded."""
    data = encoded(photo(1000, 900), "JPEG", quality=85, **options)
    for share in (0.3, 0.6, 0.8, 0.95):
        assert list(outcomes(cut(data, share))) == ["truncated"] * 2
    assert list(outcomes(data)) == ["ok", "ok"]


@pytest.mark.parametrize("name", PROGRESSIVE)
def test_a_progressive_jpeg_that_lacks_whole_scans_is_scored_with_a_note(name: str) -> None:
    data = FILES[name]
    for (_, after), _ in pairwise(scans(data)):
        image = decode(data[:after] + b"\xff\xd9")
        assert "scans_missing" in image.notes
        assert (image.width, image.height) == SIZE


@pytest.mark.parametrize("name", FILES)
def test_a_jpeg_that_lacks_only_its_end_marker_has_the_same_pixels_and_a_note(name: str) -> None:
    whole, open_ended = FILES[name], without_end(FILES[name])
    assert open_ended + b"\xff\xd9" == whole
    image = decode(open_ended)
    np.testing.assert_array_equal(image.pixels, decode(whole).pixels)
    assert image.notes == ("no_end_marker",)
    assert decode(whole).notes == ()
    part = decode_boxes(open_ended, central)
    for box, same in zip(part.boxes, decode_boxes(whole, central).boxes, strict=True):
        np.testing.assert_array_equal(box, same)
    assert part.notes == ("no_end_marker",)

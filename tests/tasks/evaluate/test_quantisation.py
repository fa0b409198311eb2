"""Quantisation tables, the quality behind them, and chroma subsampling agree with Pillow, which wrote the files."""

from __future__ import annotations

import io
from typing import Any

import pytest
from helpers.bad_inputs import encoded, photo
from PIL import Image, JpegImagePlugin, JpegPresets

from mdmf_deploy.images.containers import jpeg
from mdmf_deploy.images.limits import DEFAULT_LIMITS
from mdmf_deploy.tasks.evaluate.quantisation import STANDARD, class_of, quality_of, subsampling_of, tables_of

PICTURE = Image.fromarray(photo(32, 16))
QUALITIES = range(1, 101)


def parsed(data: bytes) -> jpeg.Jpeg:
    return jpeg.parse(data, DEFAULT_LIMITS)


def tables(picture: Image.Image = PICTURE, **options: Any) -> tuple[tuple[int, ...], ...]:
    return tables_of(parsed(encoded(picture, "JPEG", **options)))


def changed(step: int) -> list[list[int]]:
    """Return the standard tables of quality 80, one entry of which differs."""
    first, second, *_ = (list(table) for table in tables(quality=80))
    first[20] += step
    return [first, second]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_every_quality_and_subsampling_is_what_the_writer_was_given(subsampling: str) -> None:
    for quality in QUALITIES:
        data = encoded(PICTURE, "JPEG", quality=quality, subsampling=subsampling)
        found = parsed(data)
        read = tables_of(found)
        assert (quality_of(read), class_of(read), subsampling_of(found)) == (quality, STANDARD, subsampling)
        opened = Image.open(io.BytesIO(data))
        assert isinstance(opened, JpegImagePlugin.JpegImageFile)
        # A layer is (component, across, down, table).
        assert read == tuple(tuple(opened.quantization[layer[3]]) for layer in opened.layer)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("quality", [5, 50, 93])
def test_grey_and_cmyk_have_a_quality_too(mode: str, quality: int) -> None:
    found = tables(PICTURE.convert(mode), quality=quality)
    assert (quality_of(found), class_of(found)) == (quality, STANDARD)


@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}])
def test_the_order_of_scans_and_codes_does_not_matter(options: dict[str, Any]) -> None:
    assert tables(quality=77, **options) == tables(quality=77)


def test_tables_near_the_standard_ones_have_their_quality_but_a_class_of_their_own() -> None:
    near = tables(qtables=changed(3))
    assert quality_of(near) == 80
    assert class_of(near) != STANDARD


def test_foreign_tables_have_no_quality_and_each_its_own_class() -> None:
    flat = tables(qtables=[[16] * 64, [17] * 64])
    other = tables(qtables=[[16] * 64, [18] * 64])
    photoshop = tables(qtables=list(JpegPresets.presets["web_medium"]["quantization"]))
    assert [quality_of(found) for found in (flat, other, photoshop)] == [None] * 3
    assert len({class_of(found) for found in (flat, other, photoshop)} - {STANDARD}) == 3
    assert class_of(flat) == class_of(tables(Image.fromarray(photo(48, 48)), qtables=[[16] * 64, [17] * 64]))


def test_a_file_without_tables_has_no_quality() -> None:
    assert quality_of(()) is None


def test_rare_layouts_are_named_by_their_factors() -> None:
    data = bytearray(encoded(PICTURE, "JPEG", subsampling="4:2:0"))
    frame = parsed(bytes(data)).frame
    at = data.index(b"\xff\xc0") + 2
    assert data[at : at + 2] == parsed(bytes(data)).data[frame : frame + 2]
    for factors, name in ((0x12, "4:4:0"), (0x41, "4:1:1"), (0x13, "1x3 1x1 1x1")):
        data[at + 9] = factors
        assert subsampling_of(parsed(bytes(data))) == name

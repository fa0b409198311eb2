"""Pictures of a report: within their share of the page, of the file that was scored, and lost alone."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers.synthetic_photos import synthetic_photo
from PIL import Image

from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.outputs.heatmaps import HeatmapOptions
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import ImageError
from mdmf_deploy.tasks.report.pictures import PictureOptions, PicturePool, Shown, bytes_per_row, draw_row

Scored = list[tuple[Row, Path]]


def options(detector: Detector, most: int = 100_000) -> PictureOptions:
    return PictureOptions(HeatmapOptions.of(detector.bundle), most)


def image(text: str | None) -> Image.Image:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.fixture(scope="module")
def large(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> tuple[Row, Path]:
    path = tmp_path_factory.mktemp("large") / "large.jpg"
    Image.fromarray(synthetic_photo(3, 1500, 900)).save(path, quality=95)
    [row] = detector.detect(path)
    return row, path


def test_a_page_of_any_length_stays_within_its_bytes() -> None:
    assert bytes_per_row(1) == bytes_per_row(100) == 250_000
    assert bytes_per_row(1000) * 1000 <= 28_000_000
    for rows in (2000, 3000, 5000, 20_000, 100_000):
        assert bytes_per_row(rows) * rows <= 33_000_000
    assert bytes_per_row(5000) > 6000


@pytest.mark.parametrize("most", [250_000, 27_500, 6_600])
def test_the_pictures_of_a_row_take_their_share_at_most(detector: Detector, large: tuple[Row, Path], most: int) -> None:
    shown = draw_row(*large, options(detector, most))
    assert len(msgspec.json.encode(shown)) <= most + 200
    assert image(shown.picture).size == shown.size
    assert shown.full == (1500, 900)
    assert abs(shown.size[0] / shown.size[1] - 1500 / 900) < 0.02


def test_fewer_rows_give_larger_pictures(detector: Detector, large: tuple[Row, Path]) -> None:
    sides = [draw_row(*large, options(detector, most)).size[0] for most in (6_600, 27_500, 160_000)]
    assert sides == sorted(set(sides))


def test_a_scored_part_that_the_picture_shows_too_small_is_enlarged(
    detector: Detector, large: tuple[Row, Path], scored: Scored
) -> None:
    shown = draw_row(*large, options(detector, 27_500))
    crop = detector.bundle.manifest.preprocessing.crop
    assert shown.sheet_size == image(shown.sheet).size == (crop, crop)
    left, top, right, bottom = shown.box or (0.0,) * 4
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((0.5, 0.5), abs=0.02)
    assert right - left == pytest.approx(crop / 1500, rel=0.2)
    assert draw_row(*scored[0], options(detector)).sheet is None


def test_a_small_picture_is_not_reduced(detector: Detector, scored: Scored) -> None:
    for row, path in scored:
        shown = draw_row(row, path, options(detector))
        assert (shown.full, shown.size) == (None, (row.width, row.height))
        with Image.open(path) as original:
            pixels = [np.asarray(one.convert("RGB"), float).ravel() for one in (image(shown.picture), original)]
        assert np.corrcoef(*pixels)[0, 1] > 0.9


def test_the_map_is_left_out_where_it_would_not_fit(detector: Detector, scored: Scored) -> None:
    row, path = scored[0]
    for changed in ({"contributions": None}, {"width": 1 + (row.width or 0)}):
        shown = draw_row(msgspec.structs.replace(row, **changed), path, options(detector))
        assert (shown.layer, shown.box) == (None, None)
        assert shown.picture


def test_a_file_that_changed_gives_no_picture(detector: Detector, scored: Scored, tmp_path: Path) -> None:
    (row, _), (_, other) = scored[:2]
    with pytest.raises(ImageError, match="changed while it was scored"):
        draw_row(row, other, options(detector))


def test_a_picture_that_fails_costs_itself_alone(detector: Detector, scored: Scored, tmp_path: Path) -> None:
    rows = [row for row, _ in scored[:4]]
    paths = [Path(shutil.copy(path, tmp_path)) for _, path in scored[:4]]
    paths[1].unlink()
    failed: list[Row] = []
    pool = PicturePool(options(detector), lambda row, error: failed.append(row), 2)
    for row, path in zip(rows, paths, strict=True):
        pool.add(row, path)
    pool.add(Row(uri="e", status="error"), paths[0])
    pool.add(rows[0], None)
    pool.close()
    assert failed == [rows[1]]
    assert list(pool.missing) == [1]
    assert [one is not None for one in pool.drawn] == [True, False, True, True, False, False]
    sizes = [msgspec.json.decode(one, type=Shown).size for one in pool.drawn if one is not None]
    assert sizes == [(row.width, row.height) for row in (rows[0], rows[2], rows[3])]

"""Heat maps: colours where the patches are, centred on the threshold, over the picture as it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from mdmf_deploy.detection.outputs.heatmaps import ColourScale, HeatmapFolder, draw
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import ImageError, ShapeMismatch, UsageError
from mdmf_deploy.images.crops import boxes

GREY = 128
# The left panel of a square picture of this size is the picture, pixel for pixel, with its corner at LEFT, TOP.
SIDE, LEFT, TOP = 560, 20, 88


def row(contributions: tuple[float, ...] = (0.3, 0.1, 0.1, -0.1), threshold: float | None = 0.1) -> Row:
    return Row(
        uri="photo.png",
        score=float(np.mean(contributions)),
        verdict="real" if threshold is not None else "uncalibrated",
        threshold=threshold,
        p_value=None if threshold is None else 0.5,
        width=SIDE,
        height=SIDE,
        crop="center",
        contributions=contributions,
    )


def left_panel(page: Image.Image, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    return np.asarray(page)[TOP : TOP + height, LEFT : LEFT + width].astype(int)


def test_each_patch_is_coloured_where_it_lies() -> None:
    picture = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    panel = left_panel(draw(picture, row(), pool=2, crop=280))
    upper_left, upper_right = panel[150, 150], panel[150, 409]
    lower_left, lower_right = panel[409, 150], panel[409, 409]
    assert upper_left[0] - upper_left[2] > 50
    assert lower_right[2] - lower_right[0] > 50
    # Patches at the threshold leave the picture as it is.
    for at_centre in (upper_right, lower_left):
        assert np.abs(at_centre - GREY).max() <= 12


def test_the_picture_outside_the_crop_is_untouched() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    before = picture.copy()
    panel = left_panel(draw(picture, row(), pool=2, crop=280))
    [(left, top, right, bottom)] = boxes(SIDE, SIDE, 280)
    outside = np.ones((SIDE, SIDE), bool)
    outside[top:bottom, left:right] = False
    np.testing.assert_array_equal(panel[outside], picture[outside])
    assert (panel[~outside] != picture[~outside]).mean() > 0.5
    np.testing.assert_array_equal(picture, before)


def test_the_mirrored_rim_of_a_smaller_image_is_left_out() -> None:
    # A crop of twice the picture's side: the picture is its middle, where four patches meet.
    picture = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    panel = left_panel(draw(picture, row((0.3, 0.1, 0.1, 0.1)), pool=2, crop=2 * SIDE))
    redness = panel[..., 0] - panel[..., 2]
    assert redness[20, 20] > redness[100, 100] > redness[SIDE // 2, SIDE // 2] > redness[500, 500]


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (3, 2000), (2000, 3), (57, 56), (300, 200), (1600, 1200), (640, 480)]
)
def test_any_shape_of_picture_gives_a_page(width: int, height: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    page = draw(picture, row(), pool=2, crop=56)
    assert page.mode == "RGB"
    assert page.width >= 760
    assert page.width <= 1800
    assert page.height == 682


def test_colours_are_symmetric_about_the_centre() -> None:
    scale = ColourScale.of(row())
    assert (scale.centre, scale.name) == (0.1, "threshold")
    assert scale.half == pytest.approx(0.2)
    _, opacity = scale(np.array([-0.1, 0.0, 0.1, 0.2, 0.3]))
    assert opacity[:, 0] == pytest.approx(opacity[::-1, 0])
    assert opacity[2, 0] == pytest.approx(0.0, abs=1e-12)
    assert np.all(opacity < 1)


def test_without_a_threshold_the_centre_is_the_mean() -> None:
    scale = ColourScale.of(row(threshold=None))
    assert (scale.centre, scale.name) == (pytest.approx(0.1), "mean")
    assert ColourScale.of(row((0.2, 0.2, 0.2, 0.2), threshold=None)).half > 0


def several(*crops: float) -> Row:
    """A row of crops whose patches all have the same contribution."""
    return msgspec.structs.replace(row(tuple(np.repeat(crops, 4).tolist())), crop=f"grid 2x{len(crops) // 2}")


def test_every_crop_is_coloured_where_it_lies() -> None:
    picture = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    page = draw(picture, several(0.3, 0.1, 0.1, -0.1), pool=2, crop=140)
    panel = left_panel(page)
    # Quarters of 280 pixels, each with its crop in the middle.
    upper_left, upper_right, lower_left, lower_right = (panel[y, x] for y in (140, 420) for x in (140, 420))
    assert upper_left[0] - upper_left[2] > 50
    assert lower_right[2] - lower_right[0] > 50
    for rest in (upper_right, lower_left, panel[280, 280], panel[60, 140]):
        assert np.abs(rest - GREY).max() <= 12
    # On the right, the crops lie side by side.
    sheet = np.asarray(page)[TOP : TOP + SIDE, 2 * LEFT + SIDE : 2 * LEFT + 2 * SIDE].astype(int)
    assert sheet[100, 100, 0] - sheet[100, 100, 2] > 50
    assert sheet[460, 460, 2] - sheet[460, 460, 0] > 50
    assert np.abs(np.diff(sheet[100, 460])).max() <= 12


def test_where_crops_overlap_the_picture_shows_their_mean() -> None:
    picture = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    # Crops of 300 pixels in a side of 560, at 0 and 260, share 40 pixels.
    panel = left_panel(draw(picture, several(0.3, -0.1, 0.3, -0.1), pool=2, crop=300))
    assert panel[130, 130, 0] - panel[130, 130, 2] > 50
    assert panel[130, 430, 2] - panel[130, 430, 0] > 50
    assert np.abs(panel[130, 280] - GREY).max() <= 12


def test_contributions_of_other_crops_than_the_pictures_are_refused() -> None:
    for size, count in ((80, 8), (40, 16), (300, 6)):
        with pytest.raises(ShapeMismatch, match="expected 4 contributions for each crop of"):
            draw(np.zeros((size, size, 3), np.uint8), row((0.1,) * count), pool=2, crop=56)


def save(path: Path, value: int) -> Row:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 60), (value, 0, 0)).save(path)
    found = row()
    return Row(
        **{name: getattr(found, name) for name in ("score", "verdict", "threshold", "contributions", "crop")},
        uri=path.as_posix(),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        width=80,
        height=60,
    )


def test_no_two_images_share_a_name(tmp_path: Path) -> None:
    maps = HeatmapFolder(tmp_path / "maps" / "deep", pool=2, crop=56)
    sources = [tmp_path / name for name in ("a/x.png", "b/x.png", "b/X.bmp", "c/x-2.png", "d/" + "é" * 125 + ".png")]
    written = [maps.write(save(path, n), path) for n, path in enumerate(sources)]
    names = [path.name for path in written if path is not None]
    assert names[:4] == ["x.heatmap.png", "x-2.heatmap.png", "X-3.heatmap.png", "x-2-2.heatmap.png"]
    assert len(list((tmp_path / "maps" / "deep").iterdir())) == 5
    # The same images again take the same names.
    assert HeatmapFolder(tmp_path / "maps" / "deep", 2, 56).write(save(sources[0], 0), sources[0]) == written[0]


def test_unreadable_images_have_no_heat_map(tmp_path: Path) -> None:
    maps = HeatmapFolder(tmp_path / "maps", pool=2, crop=56)
    assert maps.write(Row(uri="gone.jpg", status="error"), tmp_path / "gone.jpg") is None
    assert not list((tmp_path / "maps").iterdir())


def test_a_file_that_changed_is_not_drawn(tmp_path: Path) -> None:
    maps = HeatmapFolder(tmp_path / "maps", pool=2, crop=56)
    scored = save(tmp_path / "a.png", 1)
    save(tmp_path / "a.png", 2)
    with pytest.raises(ImageError, match="changed"):
        maps.write(scored, tmp_path / "a.png")


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "maps"):
        with pytest.raises(UsageError, match=r"--heatmaps .*; choose a folder you can write to"):
            HeatmapFolder(folder, pool=2, crop=56)

"""Heat maps: colours where the patches are, centred on the threshold, over the picture as it is, in whole files."""

from __future__ import annotations

import errno
import hashlib
import io
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.outputs import heatmaps as heatmaps_module
from mdmf_deploy.detection.outputs.drawing import ColourScale, Picture
from mdmf_deploy.detection.outputs.drawing import draw as draw_picture
from mdmf_deploy.detection.outputs.heatmaps import HeatmapFolder, HeatmapOptions, HeatmapPool
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import ImageError, ShapeMismatch, UsageError
from mdmf_deploy.images.crops import boxes

GREY = 128
# The left panel of a square picture of this size is the picture, pixel for pixel, with its corner at LEFT, TOP.
SIDE, LEFT, TOP = 448, 20, 88
OPTIONS = HeatmapOptions(pool=2, crop=56)


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


def draw(pixels: np.ndarray, row: Row, pool: int, crop: int, scale: ColourScale | None = None) -> Image.Image:
    count = max(1, len(row.contributions or ()) // pool**2)
    return draw_picture(Picture.of(pixels, crop, count), row, pool, crop, scale or ColourScale.of(row))


def left_panel(page: Image.Image, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    return np.asarray(page)[TOP : TOP + height, LEFT : LEFT + width].astype(int)


def test_each_patch_is_coloured_where_it_lies() -> None:
    picture = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    panel = left_panel(draw(picture, row(), pool=2, crop=224))
    upper_left, upper_right = panel[120, 120], panel[120, 327]
    lower_left, lower_right = panel[327, 120], panel[327, 327]
    assert upper_left[0] - upper_left[2] > 50
    assert lower_right[2] - lower_right[0] > 50
    # Patches at the threshold leave the picture as it is.
    for at_centre in (upper_right, lower_left):
        assert np.abs(at_centre - GREY).max() <= 12


def test_the_picture_outside_the_crop_is_untouched() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    before = picture.copy()
    panel = left_panel(draw(picture, row(), pool=2, crop=224))
    [(left, top, right, bottom)] = boxes(SIDE, SIDE, 224)
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
    assert redness[20, 20] > redness[100, 100] > redness[SIDE // 2, SIDE // 2] > redness[SIDE - 20, SIDE - 20]


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (3, 2000), (2000, 3), (57, 56), (300, 200), (1600, 1200), (640, 480)]
)
def test_any_shape_of_picture_gives_a_page(width: int, height: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    page = draw(picture, row(), pool=2, crop=56)
    assert page.mode == "RGB"
    assert page.width >= 760
    assert page.width <= 1500
    assert page.height == 570


def test_colours_are_symmetric_about_the_centre() -> None:
    scale = ColourScale.of(row())
    assert (scale.centre, scale.name) == (0.1, "threshold")
    assert scale.half == pytest.approx(0.2)
    levels = scale.levels(np.array([-9.0, -0.1, 0.0, 0.1, 0.2, 0.3, 9.0], np.float32))
    assert levels.tolist() == pytest.approx([0, 0, 63.5, 127, 190.5, 254, 254], abs=0.5)


def test_without_a_threshold_the_centre_is_the_mean() -> None:
    scale = ColourScale.of(row(threshold=None))
    assert (scale.centre, scale.name) == (pytest.approx(0.1), "mean")
    assert ColourScale.of(row((0.2, 0.2, 0.2, 0.2), threshold=None)).half > 0


def several(*crops: float) -> Row:
    """A row of crops whose patches all have the same contribution."""
    return msgspec.structs.replace(row(tuple(np.repeat(crops, 4).tolist())), crop=f"grid 2x{len(crops) // 2}")


def test_every_crop_is_coloured_where_it_lies() -> None:
    picture = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    page = draw(picture, several(0.3, 0.1, 0.1, -0.1), pool=2, crop=112)
    panel = left_panel(page)
    # Quarters of 224 pixels, each with its crop in the middle.
    upper_left, upper_right, lower_left, lower_right = (panel[y, x] for y in (112, 336) for x in (112, 336))
    assert upper_left[0] - upper_left[2] > 50
    assert lower_right[2] - lower_right[0] > 50
    for rest in (upper_right, lower_left, panel[224, 224], panel[48, 112]):
        assert np.abs(rest - GREY).max() <= 12
    # On the right, the crops lie side by side.
    sheet = np.asarray(page)[TOP : TOP + SIDE, 2 * LEFT + SIDE : 2 * LEFT + 2 * SIDE].astype(int)
    assert sheet[100, 100, 0] - sheet[100, 100, 2] > 50
    assert sheet[360, 360, 2] - sheet[360, 360, 0] > 50
    assert np.abs(np.diff(sheet[100, 360])).max() <= 12


def test_where_crops_overlap_the_picture_shows_their_mean() -> None:
    picture = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    # Crops of 240 pixels in a side of 448, at 0 and 208, share 32 pixels.
    panel = left_panel(draw(picture, several(0.3, -0.1, 0.3, -0.1), pool=2, crop=240))
    assert panel[110, 110, 0] - panel[110, 110, 2] > 50
    assert panel[110, 340, 2] - panel[110, 340, 0] > 50
    assert np.abs(panel[110, 224] - GREY).max() <= 12


def test_contributions_of_other_crops_than_the_pictures_are_refused() -> None:
    for size, count in ((80, 8), (40, 16), (300, 6)):
        with pytest.raises(ShapeMismatch, match="expected 4 contributions for each crop of"):
            draw(np.zeros((size, size, 3), np.uint8), row((0.1,) * count), pool=2, crop=56)


def test_a_wider_scale_gives_fainter_colours() -> None:
    picture = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    panels = [left_panel(draw(picture, row(), 2, 224, ColourScale(0.1, half, "threshold"))) for half in (0.2, 0.8)]
    strong, faint = (panel[120, 120, 0] - panel[120, 120, 2] for panel in panels)
    assert strong > 2 * faint > 20


def test_all_maps_of_a_bundle_share_a_scale_around_their_thresholds() -> None:
    bundle = Bundle.open("starter")
    scale = ColourScale.of_bundle(bundle)
    highest = 1 + bundle.bank.self_term
    assert (scale.centre, scale.half, scale.name) == (highest / 2, highest / 4, "middle")
    assert scale.around(row(threshold=None)) == scale
    around = {(one.half, one.name) for one in (scale.around(row()), scale.around(row((0.9,) * 4)))}
    assert around == {(scale.half, "threshold")}
    assert scale.around(row()).centre == 0.1
    assert HeatmapOptions.of(bundle).scale == scale
    assert HeatmapOptions.of(bundle, comparable=False).scale is None


def test_another_format_is_refused() -> None:
    with pytest.raises(UsageError, match="'gif' are not known; choose one of jpeg, png"):
        HeatmapOptions(2, 56, format="gif")


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
    maps = HeatmapFolder(tmp_path / "maps" / "deep", OPTIONS)
    sources = [tmp_path / name for name in ("a/x.png", "b/x.png", "b/X.bmp", "c/x-2.png", "d/" + "é" * 125 + ".png")]
    written = [maps.write(save(path, n), path) for n, path in enumerate(sources)]
    names = [path.name for path in written if path is not None]
    assert names[:4] == ["x.heatmap.jpg", "x-2.heatmap.jpg", "X-3.heatmap.jpg", "x-2-2.heatmap.jpg"]
    assert len(list((tmp_path / "maps" / "deep").iterdir())) == 5
    # The same images again take the same names.
    assert HeatmapFolder(tmp_path / "maps" / "deep", OPTIONS).write(save(sources[0], 0), sources[0]) == written[0]


def test_unreadable_images_have_no_heat_map(tmp_path: Path) -> None:
    maps = HeatmapFolder(tmp_path / "maps", OPTIONS)
    assert maps.write(Row(uri="gone.jpg", status="error"), tmp_path / "gone.jpg") is None
    assert not list((tmp_path / "maps").iterdir())


def test_a_file_that_changed_is_not_drawn(tmp_path: Path) -> None:
    maps = HeatmapFolder(tmp_path / "maps", OPTIONS)
    scored = save(tmp_path / "a.png", 1)
    save(tmp_path / "a.png", 2)
    with pytest.raises(ImageError, match="changed"):
        maps.write(scored, tmp_path / "a.png")


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "maps"):
        with pytest.raises(UsageError, match=r"--heatmaps .*; choose a folder you can write to"):
            HeatmapFolder(folder, OPTIONS)


def test_both_formats_show_the_same_map(tmp_path: Path) -> None:
    scored = save(tmp_path / "a.png", 200)
    pages = []
    for format in ("png", "jpeg"):
        path = HeatmapFolder(tmp_path / "maps", replace(OPTIONS, format=format)).write(scored, tmp_path / "a.png")
        assert path is not None
        with Image.open(path) as page:
            assert page.format == format.upper()
            pages.append(np.asarray(page.convert("RGB")).astype(int))
    assert np.abs(pages[0] - pages[1]).mean() < 2
    coloured = [page[TOP + 60 : TOP + 150, 130:200] for page in pages]
    assert np.ptp(coloured[0]) > 100
    assert np.abs(coloured[0] - coloured[1]).max() < 16


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_photograph_is_drawn_as_if_decoded_whole(
    tmp_path: Path, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A JPEG of several times the panel's size is decoded at a half or a quarter, except for its crops."""
    gradient = np.zeros((1200, 2400, 3), np.uint8)
    gradient[..., 0] = np.linspace(0, 255, 2400)
    gradient[..., 1] = np.linspace(0, 255, 1200)[:, None]
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    Image.fromarray(gradient).save(buffer, "JPEG", exif=exif)
    path = tmp_path / "large.jpg"
    path.write_bytes(buffer.getvalue())
    scored = msgspec.structs.replace(row(), sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
    pages = []

    def kept(picture: Picture, *rest: object) -> Image.Image:
        pages.append((picture, draw_picture(picture, *rest)))  # type: ignore[arg-type]
        return pages[-1][1]

    monkeypatch.setattr(heatmaps_module, "draw", kept)
    HeatmapFolder(tmp_path / "maps", OPTIONS).write(scored, path)
    [(picture, page)] = pages
    upright = np.asarray(
        Image.open(path).transpose(Image.Transpose.ROTATE_270) if orientation == 6 else Image.open(path)
    )
    assert (picture.height, picture.width) == upright.shape[:2]
    assert picture.width == {1: 2, 6: 4}[orientation] * picture.whole.width
    [(left, top, right, bottom)] = boxes(*upright.shape[:2], 56)
    np.testing.assert_array_equal(picture.parts[0], upright[top:bottom, left:right])
    wanted = draw(upright, scored, 2, 56)
    assert page.size == wanted.size
    assert np.abs(np.asarray(page).astype(int) - np.asarray(wanted)).max() <= 24


class Held(HeatmapFolder):
    """A folder whose maps wait until they are released. It counts those that are being drawn."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, OPTIONS)
        self.release, self.begun = threading.Event(), threading.Semaphore(0)

    def reserve(self, row: Row, source: Path):  # type: ignore[no-untyped-def]
        work = super().reserve(row, source)

        def held() -> Path:
            self.begun.release()
            self.release.wait()
            return work()  # type: ignore[misc]

        return None if work is None else held


def test_names_and_reports_keep_the_order_of_the_rows(tmp_path: Path) -> None:
    names = ["a/x.png", "b/x.png", "c/x.png", "d/x.png"]
    rows = {tmp_path / name: save(tmp_path / name, n) for n, name in enumerate(names)}
    folder = HeatmapFolder(tmp_path / "maps", OPTIONS)
    failed: list[tuple[str, str]] = []
    (tmp_path / "b/x.png").write_bytes(b"changed")
    (tmp_path / "d/x.png").unlink()
    with HeatmapPool(folder, lambda row, error: failed.append((row.uri, str(error))), workers=3) as pool:
        for path, scored in rows.items():
            pool.add(scored, path)
        pool.add(Row(uri="gone.jpg", status="error"), tmp_path / "gone.jpg")
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["x-3.heatmap.jpg", "x.heatmap.jpg"]
    assert [uri for uri, _ in failed] == [(tmp_path / name).as_posix() for name in ("b/x.png", "d/x.png")]
    assert ["changed while it was scored" in failed[0][1], "does not exist" in failed[1][1]] == [True, True]


def test_maps_do_not_pile_up(tmp_path: Path) -> None:
    scored, folder = save(tmp_path / "a.png", 1), Held(tmp_path / "maps")
    with HeatmapPool(folder, pytest.fail, workers=1) as pool:
        for _ in range(4):
            pool.add(scored, tmp_path / "a.png")
        fifth = threading.Thread(target=pool.add, args=(scored, tmp_path / "a.png"))
        fifth.start()
        folder.begun.acquire()
        fifth.join(0.1)
        waited = fifth.is_alive()
        folder.release.set()
        fifth.join()
    assert waited
    assert len(list((tmp_path / "maps").iterdir())) == 5


def test_an_interrupt_leaves_whole_maps_of_all_rows(tmp_path: Path) -> None:
    scored, folder = save(tmp_path / "a.png", 1), Held(tmp_path / "maps")

    def interrupted() -> None:
        with HeatmapPool(folder, pytest.fail, workers=1) as pool:
            pool.add(scored, tmp_path / "a.png")
            pool.add(scored, tmp_path / "a.png")
            folder.begun.acquire()
            assert list((tmp_path / "maps").iterdir()) == []
            threading.Timer(0.05, folder.release.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    found = sorted((tmp_path / "maps").iterdir())
    assert [path.name for path in found] == ["a-2.heatmap.jpg", "a.heatmap.jpg"]
    for path in found:
        Image.open(path).load()


def test_a_map_that_cannot_be_written_whole_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def full(self: Path, data: bytes) -> int:
        self.touch()
        seen.extend(path.name for path in self.parent.iterdir())
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    scored, folder = save(tmp_path / "a.png", 1), HeatmapFolder(tmp_path / "maps", OPTIONS)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        folder.write(scored, tmp_path / "a.png")
    assert [name.endswith(".mdmf-tmp") for name in seen] == [True]
    assert list((tmp_path / "maps").iterdir()) == []


def test_other_errors_than_the_images_are_not_hidden(tmp_path: Path) -> None:
    scored = msgspec.structs.replace(save(tmp_path / "a.png", 1), contributions=(0.1,) * 5)
    with pytest.raises(ShapeMismatch), HeatmapPool(HeatmapFolder(tmp_path / "maps", OPTIONS), pytest.fail) as pool:
        pool.add(scored, tmp_path / "a.png")

"""Draw one heat map: the image, coloured by how much each patch of its scored crops contributes to the score.

The mean of the contributions is the score (docs/method.md, "Shares of patches"). A contribution above the threshold
pushes the image towards "generated", one below it pushes away. So colours are centred on the threshold, where a patch
keeps its own colours.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import ShapeMismatch, UsageError
from mdmf_deploy.images.crops import Box, Pixels, boxes, grid

# ColorBrewer's RdBu, from blue (below the centre) to red. Colour-blind eyes can tell it apart, too.
_COLOURS = np.array(
    [
        (0x21, 0x66, 0xAC),
        (0x43, 0x93, 0xC3),
        (0x92, 0xC5, 0xDE),
        (0xF7, 0xF7, 0xF7),
        (0xF4, 0xA5, 0x82),
        (0xD6, 0x60, 0x4D),
        (0xB2, 0x18, 0x2B),
    ],
    np.float64,
)
_OPACITY = 0.5  # of the strongest colour
_LEVELS = np.linspace(-1, 1, 255)  # strengths with a colour of their own; the middle one is the centre
_BARE = 255  # the level of a pixel in no crop
_STOPS = np.linspace(-1, 1, len(_COLOURS))
_PALETTE = np.rint([np.interp(_LEVELS, _STOPS, channel) for channel in _COLOURS.T]).astype(np.uint8).T.copy()
_OPACITIES = np.append(np.rint(255 * _OPACITY * np.abs(_LEVELS)), 0).astype(np.uint8)
PANEL = (800, 448)
"""Pixels: greatest width and height of the panel that shows the whole picture."""

_LAYER_PIXELS = 8  # of a layer, along one side of a patch. Whatever shows it smooths it.
_SIDE = PANEL[1]  # pixels: of the square panel for the crops, where one of 224 pixels has twice its size
_MARGIN, _HEAD, _FOOT, _BAR = 20, 88, 34, 150
_INK, _QUIET, _PAPER = (25, 25, 25), (105, 105, 105), (255, 255, 255)
_VERDICT_INK = {"generated": (0xB2, 0x18, 0x2B), "real": (0x21, 0x66, 0xAC), "uncertain": (0x9A, 0x6A, 0)}

Part = tuple[float, float, float, float]
"""left, top, right, bottom of a part of a crop, in patches."""


@dataclass(frozen=True, slots=True)
class ColourScale:
    """Map contributions to colours.

    centre: the contribution without a colour.
    half: distance from the centre to either end of the scale. Contributions beyond an end get its colour.
    name: what the centre is, "threshold", "middle" or "mean".
    """

    centre: float
    half: float
    name: str

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> ColourScale:
        """Return the scale that all maps of a bundle share. It depends on the bank alone.

        A score lies between 0 and 1 plus the bank's own term (docs/method.md, "The score"). The centre is the middle of
        that range, and the scale is half as wide as the range.
        """
        highest = 1.0 + bundle.bank.self_term
        return cls(highest / 2, highest / 4, "middle")

    @classmethod
    def of(cls, row: Row) -> ColourScale:
        """Centre the scale on the row's threshold, or on the mean if it has none, wide enough for all contributions.

        Raises UsageError for a row without a score.
        """
        # The contributions of a video's row are those of its highest frame.
        mean = row.score if row.highest_score is None else row.highest_score
        centre, name = (mean, "mean") if row.threshold is None else (row.threshold, "threshold")
        if centre is None or not row.contributions:
            raise UsageError(f"{row.uri}: no score, so no heat map")
        half = max(abs(value - centre) for value in row.contributions)
        return cls(centre, max(half, 1e-12), name)

    def around(self, row: Row) -> ColourScale:
        """Return this scale around the row's threshold, if it has one."""
        return self if row.threshold is None else replace(self, centre=row.threshold, name="threshold")

    def levels(self, contributions: NDArray[Any]) -> NDArray[np.uint8]:
        """Return contributions as places in the palette, from 0 at the lower end to 254 at the upper one."""
        strength = (contributions - np.float32(self.centre)) * np.float32(127 / self.half)
        levels: NDArray[np.uint8] = (np.clip(strength, -127, 127) + np.float32(127.5)).astype(np.uint8)
        return levels


class Picture(NamedTuple):
    """An image as far as its heat map shows it.

    whole: the image, reduced or not.  parts: (h, w, 3) uint8, the pixels of its scored boxes.
    width, height: of the image before it was reduced.
    """

    whole: Image.Image
    parts: tuple[Pixels, ...]
    width: int
    height: int

    @classmethod
    def of(cls, pixels: Pixels, crop: int, count: int) -> Picture:
        """Return an image of (H, W, 3) pixels and at most `count` crops."""
        height, width = pixels.shape[:2]
        parts = tuple(pixels[top:bottom, left:right] for left, top, right, bottom in boxes(height, width, crop, count))
        return cls(Image.fromarray(pixels), parts, width, height)


class Layer(NamedTuple):
    """A heat map without the picture under it.

    image: RGBA. Stronger colours are less transparent, and a patch at the centre of the scale is invisible.
    box: left, top, right, bottom of the part of the picture that it covers, as shares of the picture's size.
    """

    image: Image.Image
    box: tuple[float, float, float, float]


class HeatLayers(NamedTuple):
    """The heat map of a row, apart from its picture.

    whole: over the whole picture.  crops: the boxes that were scored, as shares of its size, like Layer.box.
    sheet: the crops that were scored, in their rows and columns, RGB.  zoomed: over the sheet.
    """

    whole: Layer
    crops: tuple[tuple[float, float, float, float], ...]
    sheet: Image.Image
    zoomed: Layer


def draw(picture: Picture, row: Row, pool: int, crop: int, scale: ColourScale) -> Image.Image:
    """Draw the whole picture on the left, the scored crops in grey and enlarged on the right, a colour bar, a verdict.

    On the picture, a pixel in several crops gets the mean of their contributions. On the right, each crop has its own.

    pool: patches along one side of a crop.
    crop: pixels along one side of a crop.
    Raises ShapeMismatch unless the row has pool x pool contributions for each of the crops that the picture holds.
    """
    width, height = picture.width, picture.height
    placed, shape, patches = _crops_of(picture, row, pool, crop)
    inner = _scored_part(placed[0], pool, crop)

    whole = _fit(picture.whole, PANEL, (width, height))
    on_picture = [_scaled(box, whole.width / width, whole.height / height) for box in placed]
    whole = _painted(whole, zip(on_picture, patches, strict=True), inner, scale)
    for box in on_picture:
        _frame(whole, (box[0], box[1], box[2] - 1, box[3] - 1))

    # The sheet is grey, so that every colour on it comes from the map.
    sheet, cells = _sheet(picture.parts, shape, "L")
    zoomed = _fit(sheet, (_SIDE, _SIDE), sheet.size)
    on_sheet = [_scaled(cell, zoomed.width / sheet.width, zoomed.height / sheet.height) for cell in cells]
    return _compose(row, whole, _painted(zoomed, zip(on_sheet, patches, strict=True), inner, scale), scale)


def heat_layers(picture: Picture, row: Row, pool: int, crop: int, scale: ColourScale) -> HeatLayers:
    """Return the heat map apart from the picture, to be laid over it by whatever shows the two.

    pool, crop: as of `draw`. The colours are those of `draw` if a layer is shown at half its opacity.
    Raises ShapeMismatch as `draw` does.
    """
    placed, shape, patches = _crops_of(picture, row, pool, crop)
    inner = _scored_part(placed[0], pool, crop)
    sheet, cells = _sheet(picture.parts, shape, "RGB")
    size = (picture.width, picture.height)
    crops = tuple(
        (left / size[0], top / size[1], right / size[0], bottom / size[1]) for left, top, right, bottom in placed
    )
    whole = _layer(placed, patches, size, inner, scale)
    return HeatLayers(whole, crops, sheet, _layer(cells, patches, sheet.size, inner, scale))


def palette() -> list[str]:
    """Return the colours of a heat map, from the lower end of a scale to the upper one, as #RRGGBB."""
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in _COLOURS.astype(int).tolist()]


def crops_of(row: Row, pool: int) -> int:
    """Return how many crops of pool x pool patches a row's contributions are from, at least 1."""
    return max(1, len(row.contributions or ()) // pool**2)


def _crops_of(picture: Picture, row: Row, pool: int, crop: int) -> tuple[list[Box], tuple[int, int], list[Image.Image]]:
    """Return the boxes of a row's crops, the shape of their grid, and each one's contributions as (pool, pool) F."""
    width, height = picture.width, picture.height
    contributions = np.array(row.contributions or (), np.float32)
    count = crops_of(row, pool)
    placed, shape = boxes(height, width, crop, count), grid(height, width, crop, count)
    if contributions.size != len(placed) * pool**2 or len(picture.parts) != len(placed):
        raise ShapeMismatch(
            f"{row.uri}: expected {pool**2} contributions for each crop of {width} x {height} pixels, "
            f"got {contributions.size} in all; draw the picture that was scored"
        )
    return placed, shape, [Image.fromarray(values) for values in contributions.reshape(-1, pool, pool)]


def _scored_part(box: Box, pool: int, crop: int) -> Part:
    """Return the part of a crop that its box of the picture fills, in patches. The rest mirrors a smaller picture."""
    width, height = box[2] - box[0], box[3] - box[1]
    left, top = (-((side - crop) // 2) for side in (width, height))
    share = pool / crop
    return left * share, top * share, (left + width) * share, (top + height) * share


def _scaled(box: Box, across: float, down: float) -> Box:
    """Return a box on a picture of another size, at least one pixel wide and high."""
    left, top, right, bottom = (round(edge * zoom) for edge, zoom in zip(box, (across, down) * 2, strict=True))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _painted(
    under: Image.Image,
    maps: Iterable[tuple[Box, Image.Image]],
    inner: Part,
    scale: ColourScale,
) -> Image.Image:
    """Lay each crop's patches, smoothed, over its box of a picture, half transparent."""
    bounds, levels = _levels(maps, under.size, inner, scale)
    painted = under.convert("RGB")
    painted.paste(_coloured(levels), bounds, Image.fromarray(_OPACITIES[levels]))
    return painted


def _layer(
    placed: Sequence[Box], patches: Sequence[Image.Image], size: tuple[int, int], inner: Part, scale: ColourScale
) -> Layer:
    """Draw the map of these boxes of a picture, at a few pixels a patch. The strongest colours are opaque."""
    smallest = min(min(right - left, bottom - top) for left, top, right, bottom in placed)
    zoom = min(1.0, patches[0].width * _LAYER_PIXELS / smallest)
    small = (max(1, round(size[0] * zoom)), max(1, round(size[1] * zoom)))
    scaled = [_scaled(box, small[0] / size[0], small[1] / size[1]) for box in placed]
    (left, top, right, bottom), levels = _levels(zip(scaled, patches, strict=True), small, inner, scale)
    image = _coloured(levels)
    image.putalpha(Image.fromarray(np.minimum(_OPACITIES[levels] / _OPACITY, 255).astype(np.uint8)))
    return Layer(image, (left / small[0], top / small[1], right / small[0], bottom / small[1]))


def _levels(
    maps: Iterable[tuple[Box, Image.Image]], size: tuple[int, int], inner: Part, scale: ColourScale
) -> tuple[Box, NDArray[np.uint8]]:
    """Return the box around all maps of a picture, and the levels in it. Where maps overlap, the mean counts.

    inner: the part of the patches that fills a map's box.
    """
    maps = list(maps)
    boxes = np.array([box for box, _ in maps])
    bounds: Box = (*boxes[:, :2].min(0).tolist(), *np.minimum(boxes[:, 2:].max(0), size).tolist())
    shape = (bounds[3] - bounds[1], bounds[2] - bounds[0])
    total, crops = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for (left, top, right, bottom), patches in maps:
        smooth = np.asarray(patches.resize((right - left, bottom - top), Image.Resampling.BILINEAR, inner))
        here = np.s_[top - bounds[1] : bottom - bounds[1], left - bounds[0] : right - bounds[0]]
        rows, columns = total[here].shape  # a box of one pixel may lie behind the edge, after rounding
        total[here] += smooth[:rows, :columns]
        crops[here] += 1
    levels = scale.levels(total / np.maximum(crops, 1))
    levels[crops == 0] = _BARE
    return bounds, levels


def _coloured(levels: NDArray[np.uint8]) -> Image.Image:
    index = Image.fromarray(levels)
    index.putpalette(_PALETTE.tobytes())
    return index.convert("RGB")


def _sheet(parts: tuple[Pixels, ...], shape: tuple[int, int], mode: str) -> tuple[Image.Image, list[Box]]:
    """Lay the crops out in their rows and columns, with a gap between them. Return the sheet and their boxes.

    mode: of the sheet, "L" or "RGB".
    """
    height, width = parts[0].shape[:2]
    gap = max(1, height // 32)
    sheet = Image.new(mode, (shape[1] * (width + gap) - gap, shape[0] * (height + gap) - gap), "white")
    cells = []
    for place, part in enumerate(parts):
        row, column = divmod(place, shape[1])
        left, top = column * (width + gap), row * (height + gap)
        sheet.paste(Image.fromarray(part).convert(mode), (left, top))
        cells.append((left, top, left + width, top + height))
    return sheet, cells


def _fit(image: Image.Image, panel: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """Scale an image, of this size before it was reduced, to just fit into a panel. Its aspect stays."""
    zoom = min(panel[0] / size[0], panel[1] / size[1])
    fitted = (max(1, round(size[0] * zoom)), max(1, round(size[1] * zoom)))
    # A picture is smooth, so a bilinear filter is enough to enlarge it, at two thirds of the cost of a bicubic one.
    return image.resize(fitted, Image.Resampling.LANCZOS if zoom < 1 else Image.Resampling.BILINEAR, reducing_gap=2.0)


def _frame(image: Image.Image, box: Box) -> None:
    """Draw a white line between two black ones, which shows on any picture."""
    pen = ImageDraw.Draw(image)
    for inset, ink in ((0, "black"), (1, "white"), (2, "black")):
        inner = (box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset)
        if inner[0] < inner[2] and inner[1] < inner[3]:
            pen.rectangle(inner, outline=ink)


def _compose(row: Row, whole: Image.Image, part: Image.Image, scale: ColourScale) -> Image.Image:
    title, body, small = (_font(size) for size in (26, 18, 15))
    width = max(_MARGIN * 3 + whole.width + part.width + _BAR, 760)
    page = Image.new("RGB", (width, _HEAD + _SIDE + _FOOT), _PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((_MARGIN, 14), row.verdict, _VERDICT_INK.get(row.verdict, _INK), title)
    after = _MARGIN + pen.textlength(row.verdict, title) + 24
    pen.text((after, 21), _evidence(row), _INK, body)
    pen.text((_MARGIN, 56), _shortened(pen, row.uri, small, width - 2 * _MARGIN), _QUIET, small)
    page.paste(whole, (_MARGIN, _HEAD + (_SIDE - whole.height) // 2))
    aside = _MARGIN * 2 + whole.width
    page.paste(part, (aside, _HEAD + (_SIDE - part.height) // 2))
    page.paste(_colour_bar(scale), (aside + part.width + _MARGIN - 1, _HEAD))
    under = _HEAD + _SIDE + 9
    pen.text((_MARGIN, under), f"{row.width} x {row.height} pixels", _QUIET, small)
    crops = "crops that were" if (row.crop or "").startswith("grid") else "crop that was"
    pen.text((aside, under), f"the {crops} scored ({row.crop})", _QUIET, small)
    return page


def _evidence(row: Row) -> str:
    words = [f"score {row.score:.6f}"]
    if row.highest_score is not None and row.highest_time is not None:
        words.append(f"highest frame {row.highest_score:.6f} at {row.highest_time:.2f} s")
    if row.threshold is not None and row.score is not None:
        words.append(f"{'above' if row.score > row.threshold else 'not above'} the threshold {row.threshold:.6f}")
    if row.p_value is not None:
        words.append(f"p = {row.p_value:.3g}")
    return "    ".join(words)


@lru_cache(maxsize=16)
def _colour_bar(scale: ColourScale) -> Image.Image:
    """Return the bar and its labels, as high as a panel. It is the same picture for all maps of a scale."""
    font, top, height = _font(15), 24, _SIDE - 48
    panel = Image.new("RGB", (_BAR - _MARGIN, _SIDE), _PAPER)
    column = Image.fromarray(np.ascontiguousarray(_PALETTE[::-1, None]))
    panel.paste(column.resize((22, height), Image.Resampling.BILINEAR), (1, top))
    pen = ImageDraw.Draw(panel)
    pen.rectangle((0, top - 1, 23, top + height), outline=_QUIET)
    for place, value in ((0.0, scale.centre + scale.half), (0.5, scale.centre), (1.0, scale.centre - scale.half)):
        y = top + place * (height - 1)
        pen.line((23, y, 29, y), fill=_INK)
        pen.text((35, y), f"{value:.4f}", _INK, font, anchor="lm")
    pen.text((35, top + height / 2 + 18), scale.name, _QUIET, font, anchor="lm")
    if scale.name == "threshold":
        pen.text((35, top + 18), "generated", _QUIET, font, anchor="lm")
        pen.text((35, top + height - 19), "real", _QUIET, font, anchor="lm")
    return panel


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, for this thread alone, because FreeType's faces are not safe to share."""
    return _loaded_font(size, threading.get_ident())


@lru_cache(maxsize=64)
def _loaded_font(size: int, thread: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shortened(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float
) -> str:
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength("..." + text, font) > width:
        text = text[1:]
    return "..." + text

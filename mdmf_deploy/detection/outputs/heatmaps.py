"""Heat maps: the image, coloured by how much each patch of its scored crops contributes to the score.

The mean of the contributions is the score (docs/method.md, "Shares of patches"). A contribution above the threshold
pushes the image towards "generated", one below it pushes away. So colours are centred on the threshold, where a patch
keeps its own colours.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import ImageError, ShapeMismatch, UsageError
from mdmf_deploy.images.crops import Box, boxes, grid
from mdmf_deploy.images.decode import ReadLimits, decode, read

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
_PANEL = 560  # pixels: height of both panels
_WIDEST = 1000  # pixels: greatest width of the left panel
_MARGIN = 20
_INK, _QUIET, _PAPER = (25, 25, 25), (105, 105, 105), (255, 255, 255)
_VERDICT_INK = {"generated": (0xB2, 0x18, 0x2B), "real": (0x21, 0x66, 0xAC), "uncertain": (0x9A, 0x6A, 0)}


@dataclass(frozen=True, slots=True)
class ColourScale:
    """Map contributions to colours.

    centre: the contribution without a colour.
    half: distance from the centre to either end of the scale.
    name: what the centre is, "threshold" or "mean".
    """

    centre: float
    half: float
    name: str

    @classmethod
    def of(cls, row: Row) -> ColourScale:
        """Centre the scale on the row's threshold, or on its score if it has none, wide enough for all contributions.

        Raises UsageError for a row without a score.
        """
        centre, name = (row.score, "mean") if row.threshold is None else (row.threshold, "threshold")
        if centre is None or not row.contributions:
            raise UsageError(f"{row.uri}: no score, so no heat map")
        half = max(abs(value - centre) for value in row.contributions)
        return cls(centre, max(half, 1e-12), name)

    def __call__(self, contributions: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return colours (..., 3), 0 to 255, and opacities (..., 1), 0 to 1."""
        strength = np.clip((contributions - self.centre) / self.half, -1, 1)
        stops = np.linspace(-1, 1, len(_COLOURS))
        colours = np.stack([np.interp(strength, stops, channel) for channel in _COLOURS.T], axis=-1)
        return colours, _OPACITY * np.abs(strength)[..., None]


class HeatmapFolder:
    """A folder that gets one PNG per scored image.

    Raises UsageError at birth if the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, pool: int, crop: int, limits: ReadLimits | None = None) -> None:
        self._folder, self._pool, self._crop, self._limits = folder, pool, crop, limits or ReadLimits()
        self._taken: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{os.getpid()}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(f"--heatmaps {folder}: {error.strerror}; choose a folder you can write to") from error

    def write(self, row: Row, source: Path) -> Path | None:
        """Read the image again, draw the row's heat map over it and return its path, or None for a row without a score.

        The file is called <stem>.heatmap.png, or <stem>-2.heatmap.png and so on if another image took that name.
        Raises ImageError if the image has changed since it was scored. Raises OSError, and leaves no partial file, if
        the folder takes no more.
        """
        if row.contributions is None:
            return None
        data = read(source, self._limits)
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise ImageError("unreadable", f"{row.uri} changed while it was scored; its heat map would be of another")
        picture = draw(decode(data, self._limits).pixels, row, self._pool, self._crop)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        path = self._folder / self._name(source)
        try:
            path.write_bytes(buffer.getvalue())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path

    def _name(self, source: Path) -> str:
        stem = source.stem[:60]  # at most 240 of the 255 bytes that file systems allow in a name
        name, n = f"{stem}.heatmap.png", 1
        while name.casefold() in self._taken:
            n += 1
            name = f"{stem}-{n}.heatmap.png"
        self._taken.add(name.casefold())
        return name


def draw(pixels: NDArray[np.uint8], row: Row, pool: int, crop: int) -> Image.Image:
    """Draw the whole picture on the left, the scored crops in grey and enlarged on the right, a colour bar, a verdict.

    On the picture, a pixel in several crops gets the mean of their contributions. On the right, each crop has its own.

    pixels: (H, W, 3).
    pool: patches along one side of a crop.
    crop: pixels along one side of a crop.
    Raises ShapeMismatch unless the row has pool x pool contributions for each of the crops that the picture holds.
    """
    height, width = pixels.shape[:2]
    contributions = np.array(row.contributions or ())
    count = max(1, contributions.size // pool**2)
    placed, shape = boxes(height, width, crop, count), grid(height, width, crop, count)
    if contributions.size != len(placed) * pool**2:
        raise ShapeMismatch(
            f"{row.uri}: expected {pool**2} contributions for each crop of {width} x {height} pixels, "
            f"got {contributions.size} in all; draw the picture that was scored"
        )
    scale = ColourScale.of(row)
    maps = [
        _over(box, (height, width), patches, crop)
        for box, patches in zip(placed, contributions.reshape(-1, pool, pool), strict=True)
    ]
    painted = pixels.copy()
    for box in placed:
        left, top, right, bottom = box
        painted[top:bottom, left:right] = _blend(pixels[top:bottom, left:right], *scale(_mean_in(box, placed, maps)))
    whole = _fit(Image.fromarray(painted), _WIDEST, _PANEL)
    zoom = whole.width / width
    for box in placed:
        edges = [round(edge * zoom) for edge in box]
        _frame(whole, (edges[0], edges[1], edges[2] - 1, edges[3] - 1))
    # Grey, so that every colour in it comes from the map.
    parts = []
    for (left, top, right, bottom), values in zip(placed, maps, strict=True):
        grey = np.asarray(Image.fromarray(pixels[top:bottom, left:right]).convert("L").convert("RGB"))
        parts.append(_blend(grey, *scale(values)))
    return _compose(row, whole, _fit(_sheet(parts, shape), _PANEL, _PANEL), scale)


def _over(box: Box, shape: tuple[int, int], patches: NDArray[np.float64], crop: int) -> NDArray[np.float64]:
    """Return the contribution at every pixel of a crop's box, (height, width), interpolated between patches.

    If the image is smaller than the crop, the crop's rim mirrors the image. The rim counts in the score but is not
    part of the picture, so it is left out.
    """
    left, top, right, bottom = box
    smooth = Image.fromarray(patches.astype(np.float32)).resize((crop, crop), Image.Resampling.BILINEAR)
    above, aside = (max(0, -((side - crop) // 2)) for side in shape)
    return np.asarray(smooth, np.float64)[above : above + bottom - top, aside : aside + right - left]


def _mean_in(box: Box, placed: Sequence[Box], maps: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean contribution at every pixel of a box, over all crops that hold the pixel."""
    left, top, right, bottom = box
    total, crops = np.zeros((bottom - top, right - left)), np.zeros((bottom - top, right - left))
    for other, values in zip(placed, maps, strict=True):
        low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
        if (low < high).all():
            here = np.s_[low[1] - top : high[1] - top, low[0] - left : high[0] - left]
            total[here] += values[low[1] - other[1] : high[1] - other[1], low[0] - other[0] : high[0] - other[0]]
            crops[here] += 1
    return total / crops


def _sheet(parts: Sequence[NDArray[np.uint8]], shape: tuple[int, int]) -> Image.Image:
    """Lay the crops out in their rows and columns, with a gap between them."""
    height, width = parts[0].shape[:2]
    gap = max(1, height // 32)
    size = shape[1] * (width + gap) - gap, shape[0] * (height + gap) - gap
    sheet = Image.new("RGB", size, _PAPER)
    for place, part in enumerate(parts):
        row, column = divmod(place, shape[1])
        sheet.paste(Image.fromarray(part), (column * (width + gap), row * (height + gap)))
    return sheet


def _blend(under: NDArray[np.uint8], colours: NDArray[np.float64], opacity: NDArray[np.float64]) -> NDArray[np.uint8]:
    blended: NDArray[np.uint8] = np.rint((1 - opacity) * under + opacity * colours).astype(np.uint8)
    return blended


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale the image to just fit into width x height, and keep its aspect."""
    zoom = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
    return image.resize(size, Image.Resampling.LANCZOS if zoom < 1 else Image.Resampling.BICUBIC)


def _frame(image: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Draw a white line between two black ones, which shows on any picture."""
    pen = ImageDraw.Draw(image)
    for inset, ink in ((0, "black"), (1, "white"), (2, "black")):
        inner = (box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset)
        if inner[0] < inner[2] and inner[1] < inner[3]:
            pen.rectangle(inner, outline=ink)


def _compose(row: Row, whole: Image.Image, part: Image.Image, scale: ColourScale) -> Image.Image:
    title, body, small = (ImageFont.load_default(size) for size in (26, 18, 15))
    head, foot, bar = 88, 34, 150
    width = max(_MARGIN * 3 + whole.width + part.width + bar, 760)
    page = Image.new("RGB", (width, head + _PANEL + foot), _PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((_MARGIN, 14), row.verdict, _VERDICT_INK.get(row.verdict, _INK), title)
    after = _MARGIN + pen.textlength(row.verdict, title) + 24
    pen.text((after, 21), _evidence(row), _INK, body)
    pen.text((_MARGIN, 56), _shortened(pen, row.uri, small, width - 2 * _MARGIN), _QUIET, small)
    top = head + (_PANEL - whole.height) // 2
    page.paste(whole, (_MARGIN, top))
    aside = _MARGIN * 2 + whole.width
    page.paste(part, (aside, head + (_PANEL - part.height) // 2))
    _colour_bar(page, (aside + part.width + _MARGIN, head + 24), _PANEL - 48, scale, small)
    under = head + _PANEL + 9
    pen.text((_MARGIN, under), f"{row.width} x {row.height} pixels", _QUIET, small)
    crops = "crops that were" if (row.crop or "").startswith("grid") else "crop that was"
    pen.text((aside, under), f"the {crops} scored ({row.crop})", _QUIET, small)
    return page


def _evidence(row: Row) -> str:
    words = [f"score {row.score:.6f}"]
    if row.threshold is not None and row.score is not None:
        words.append(f"{'above' if row.score > row.threshold else 'not above'} the threshold {row.threshold:.6f}")
    if row.p_value is not None:
        words.append(f"p = {row.p_value:.3g}")
    return "    ".join(words)


def _colour_bar(
    page: Image.Image,
    corner: tuple[int, int],
    height: int,
    scale: ColourScale,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    left, top = corner
    values = np.linspace(scale.centre + scale.half, scale.centre - scale.half, height)
    colours, _ = scale(values[:, None].repeat(22, axis=1))
    page.paste(Image.fromarray(np.rint(colours).astype(np.uint8)), corner)
    pen = ImageDraw.Draw(page)
    pen.rectangle((left - 1, top - 1, left + 22, top + height), outline=_QUIET)
    for place, value in ((0.0, values[0]), (0.5, scale.centre), (1.0, values[-1])):
        y = top + place * (height - 1)
        pen.line((left + 22, y, left + 28, y), fill=_INK)
        pen.text((left + 34, y), f"{value:.4f}", _INK, font, anchor="lm")
    pen.text((left + 34, top + height / 2 + 18), scale.name, _QUIET, font, anchor="lm")
    if scale.name == "threshold":
        pen.text((left + 34, top + 18), "generated", _QUIET, font, anchor="lm")
        pen.text((left + 34, top + height - 19), "real", _QUIET, font, anchor="lm")


def _shortened(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float
) -> str:
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength("..." + text, font) > width:
        text = text[1:]
    return "..." + text

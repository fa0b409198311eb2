"""The pictures of a report: each row's image and heat map, read again, reduced to a share of the page's size."""

from __future__ import annotations

import base64
import io
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from PIL import Image

from mdmf_deploy.detection.outputs.drawing import HeatLayers, Layer, Picture, heat_layers
from mdmf_deploy.detection.outputs.heatmaps import HeatmapOptions, scored_picture
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import MdmfError
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.text import one_line

MOST_BYTES = 250_000
"""The most bytes that a row's pictures take in a page of few rows, in base64."""

_ALL_BYTES = 27_500_000  # of a page of up to 1,000 rows
_MOST_ALL, _MANY = 33_000_000, 5_000  # of a page of this many rows and more
# Pixels along the longer side, and the quality of WebP. The first that fits is taken.
_RUNGS = (
    (1280, 80),
    (1120, 76),
    (960, 72),
    (820, 68),
    (700, 64),
    (600, 60),
    (520, 56),
    (450, 52),
    (390, 48),
    (340, 44),
    (290, 40),
    (240, 36),
    (192, 32),
    (128, 28),
)
_LEAST_PER_PIXEL = 0.03  # bytes: few photographs take less, so rungs that would not fit even then are not tried
_SURELY = 0.7  # of a picture's bytes a pixel: what it takes at the next rungs, at least
_SHEET_SHARE = 0.35
_ENLARGED = 0.7  # the scored crops are shown apart if the picture shows them smaller than this


Share = tuple[float, float, float, float]
"""left, top, right, bottom, as shares of a picture's size."""


class Shown(msgspec.Struct, frozen=True, omit_defaults=True):
    """The pictures of a row as the page holds them.

    picture: WebP in base64.  size: its width and height.  full: those of the image, if it was reduced.
    layer: the heat map over it, WebP with transparency.  box: as drawing.Layer.box.
    crops: the boxes that were scored, as drawing.HeatLayers.crops.
    sheet, zoomed: the scored crops enlarged, and the heat map over them, where the picture shows them too small.
    """

    picture: str
    size: tuple[int, int]
    full: tuple[int, int] | None = None
    layer: str | None = None
    box: Share | None = None
    crops: tuple[Share, ...] = ()
    sheet: str | None = None
    sheet_size: tuple[int, int] | None = None
    zoomed: str | None = None


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """How pictures are drawn.

    maps: the model's patches and crops, the colours of heat maps, and the limits of reading.
    most: bytes of a row's pictures, in base64.
    """

    maps: HeatmapOptions
    most: int = MOST_BYTES


def bytes_per_row(rows: int) -> int:
    """Return how many bytes the pictures of a row may take in a page of so many rows, in base64."""
    return min(MOST_BYTES, max(_ALL_BYTES, min(_MOST_ALL, rows * _MOST_ALL // _MANY)) // max(1, rows))


def draw_row(row: Row, source: Path, options: PictureOptions) -> Shown:
    """Read a row's image again and return its pictures.

    The heat map is left out if the row has none, or was scored at another size than the file's.
    Raises ImageError if the file cannot be read, or has changed since it was scored.
    """
    side = _RUNGS[0][0]
    picture = scored_picture(row, source, options.maps, (side, side))
    most = options.most * 3 // 4  # base64 takes four bytes for three
    layers = _layers(row, picture, options.maps)
    if layers is None:
        data, size = _encoded(picture.whole, most)
        return Shown(_text(data), size, _reduced(picture, size))
    layer, box, crops = _layer_bytes(layers.whole), _rounded(layers.whole.box), tuple(map(_rounded, layers.crops))
    left = most - len(layer)
    data, size = _encoded(picture.whole, left)
    if size[0] / picture.width >= _ENLARGED:
        return Shown(_text(data), size, _reduced(picture, size), _text(layer), box, crops)
    zoomed = _layer_bytes(layers.zoomed)
    sheet, sheet_size = _encoded(layers.sheet, int(most * _SHEET_SHARE))
    data, size = _encoded(picture.whole, left - len(zoomed) - len(sheet))
    return Shown(
        picture=_text(data),
        size=size,
        full=_reduced(picture, size),
        layer=_text(layer),
        box=box,
        crops=crops,
        sheet=_text(sheet),
        sheet_size=sheet_size,
        zoomed=_text(zoomed),
    )


class PicturePool:
    """Draw rows on threads of their own, while the caller goes on. Close it, or use it in a `with` block.

    drawn: the pictures of every row that was added, in order, as JSON, or None for one without.
    missing: the place of a row in `drawn` -> why its picture could not be drawn. Read both once the pool is closed.
    report: gets a row and the error for each picture that failed, in the order of `add`, on the caller's thread.
    """

    def __init__(self, options: PictureOptions, report: Callable[[Row, Exception], None], workers: int | None) -> None:
        workers = min(8, cores()) if workers is None else workers
        self._options, self._report = options, report
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="mdmf-report")
        self._waiting: deque[tuple[Row, Future[bytes] | None]] = deque()
        self._most = 4 * workers
        self.drawn: list[bytes | None] = []
        self.missing: dict[int, str] = {}

    def add(self, row: Row, source: Path | None) -> None:
        """Draw a row soon. Waits while four rows a thread are unfinished, so that pictures cannot pile up.

        source: the file, or None for a row without a picture.
        """
        drawn = source is not None and row.status == "ok"
        work = partial(_json, row, source, self._options) if drawn and source is not None else None
        self._waiting.append((row, None if work is None else self._pool.submit(work)))
        while self._waiting and (len(self._waiting) > self._most or _is_done(self._waiting[0][1])):
            self._settle()

    def close(self) -> None:
        """Finish every picture that was added, also after Ctrl-C."""
        try:
            while self._waiting:
                self._settle()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _settle(self) -> None:
        """Wait for the oldest picture. An error that concerns its file is reported, and costs the picture alone."""
        row, future = self._waiting[0]
        error = None if future is None else future.exception()
        self._waiting.popleft()
        if isinstance(error, MdmfError | OSError):
            self.missing[len(self.drawn)] = one_line(str(getattr(error, "strerror", None) or error))
            self._report(row, error)
        elif error is not None:
            raise error
        self.drawn.append(None if future is None or error is not None else future.result())


def _is_done(future: Future[bytes] | None) -> bool:
    return future is None or future.done()


def _json(row: Row, source: Path, options: PictureOptions) -> bytes:
    return msgspec.json.encode(draw_row(row, source, options))


def _layers(row: Row, picture: Picture, maps: HeatmapOptions) -> HeatLayers | None:
    if row.contributions is None or maps.scale is None or (row.width, row.height) != (picture.width, picture.height):
        return None
    return heat_layers(picture, row, maps.pool, maps.crop, maps.scale.around(row))


def _encoded(image: Image.Image, most: int) -> tuple[bytes, tuple[int, int]]:
    """Return the image as WebP at the best rung that takes at most so many bytes, or else the last, and its size."""
    data, size = b"", image.size
    per_pixel = _LEAST_PER_PIXEL
    for rung in _RUNGS:
        zoom = min(1.0, rung[0] / max(image.size))
        size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
        pixels = size[0] * size[1]
        if rung != _RUNGS[-1] and pixels * per_pixel > most:
            continue
        small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        buffer = io.BytesIO()
        small.save(buffer, format="WEBP", quality=rung[1], method=2)
        data = buffer.getvalue()
        if len(data) <= most:
            break
        # A lower quality takes less a pixel, and a smaller picture more.
        per_pixel = _SURELY * len(data) / pixels
    return data, size


def _layer_bytes(layer: Layer) -> bytes:
    buffer = io.BytesIO()
    layer.image.save(buffer, format="WEBP", lossless=True, method=2)
    return buffer.getvalue()


def _rounded(box: Share) -> Share:
    left, top, right, bottom = (round(side, 4) for side in box)
    return left, top, right, bottom


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _reduced(picture: Picture, size: tuple[int, int]) -> tuple[int, int] | None:
    full = (picture.width, picture.height)
    return None if size == full else full

"""A second look at images near the threshold: the same image encoded again, shrunk and shifted.

A verdict on an image should not depend on how often it was saved, or on where its patches begin. If the image or any
copy is "real" and another one "generated", the verdict is "uncertain" for the reason "unstable". A second look never
makes a verdict "real" or "generated", so it raises no error rate. The copies' own p-values are not shown, because
calibration images were not changed like them.

Copies are made of the decoded pixels, one after the other, and never written to disk.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from PIL import Image

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.sources import Taken
from mdmf_deploy.detection.verdicts import Copy, Verdicts
from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.crops import Pixels
from mdmf_deploy.images.decode import ReadLimits, decode

_LOG = logging.getLogger(__name__)

QUALITIES = (95, 85)
"""Qualities of the copies that are encoded again, as JPEG with chroma subsampling 4:2:0."""

SCALES = (0.9, 0.75)
"""Sides of the copies that are shrunk, by Lanczos's filter, in shares of the image's own."""

CUT = (14, 6)
"""Rows and columns cut off the top and the left of the copy that is shifted.

Its central crop moves by half of that, 7 and 3 pixels. Neither is a multiple of the patches' 14 or of a JPEG's 8.
"""

_MOST_JPEG_SIDE = 65_500  # libjpeg's limit


def copies(pixels: Pixels, crop: int) -> Iterator[bytes | Pixels]:
    """Yield the changed copies of an image, as the bytes of a JPEG or as pixels.

    pixels: (H, W, 3) RGB.
    crop: side of the model's input. A copy that is smaller is left out, because it would be mirrored at its edges. So
        an image smaller than a crop is only encoded again.
    """
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    if max(height, width) <= _MOST_JPEG_SIDE:
        for quality in QUALITIES:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
            yield file.getvalue()
    for scale in SCALES:
        size = round(width * scale), round(height * scale)
        if min(size) >= crop:
            yield np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    rows, columns = CUT
    if min(height - rows, width - columns) >= crop:
        yield pixels[rows:, columns:]


class SecondLook:
    """The sources of one stream, kept until their rows are there, so that they can be read again.

    A path is read again from the disk. Bytes and pixels stay in memory until then, those of a few batches at most.
    crop: side of the model's input.
    """

    def __init__(self, sources: Iterable[Taken], verdicts: Verdicts, crop: int, limits: ReadLimits) -> None:
        self._sources, self._verdicts, self._crop, self._limits = sources, verdicts, crop, limits
        # Its two ends belong to two threads, and its methods are atomic.
        self._waiting: deque[Taken] = deque()

    def sources(self) -> Iterator[Taken]:
        """Yield the sources, for the thread that takes them."""
        for taken in self._sources:
            self._waiting.append(taken)
            yield taken

    def rows(self, rows: tuple[Row, ...], scored: Callable[[Iterable[Taken]], Iterable[Copy]]) -> tuple[Row, ...]:
        """Return the rows of the next source after a second look, if its image is near the threshold.

        scored: scores copies like sources of a stream.
        The row of an image that cannot be read again, or is another one by now, keeps its verdict, with 0 probes.
        """
        taken = self._waiting.popleft()
        if len(rows) != 1 or not self._verdicts.near(rows[0]):
            return rows
        [row] = rows
        try:
            pixels = self._read_again(taken, row)
            sources = (_taken(copy) for copy in copies(pixels, self._crop))
            found = list(scored(sources))
        except (ImageError, MemoryError) as error:
            _LOG.warning("%s: no second look: %s", row.uri, str(error) or "its copies do not fit into memory")
            found = []
        return (self._verdicts.looked_again(row, found),)

    def _read_again(self, taken: Taken, row: Row) -> Pixels:
        """Return the image's pixels, (H, W, 3).

        Raises ImageError if they are no longer those of its row, or if the copies would take too much memory.
        """
        # The pixels, Pillow's copy of them, a shrunk copy and the bytes that are hashed.
        self._limits.check_memory("its copies", 4 * 3 * (row.width or 0) * (row.height or 0))
        data = taken.data(self._limits)
        if data is None:
            return taken.pixels(row.uri)
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise ImageError("unreadable", "it has changed since it was scored")
        return decode(data, self._limits).pixels


def _taken(copy: bytes | Pixels) -> Taken:
    return Taken(copy, "bytes" if isinstance(copy, bytes) else "array")

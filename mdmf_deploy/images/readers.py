"""Pillow's readers of PNG, GIF and WebP, which notice pixels that are not there.

PNG and GIF pack their pixels in a stream with an end of its own. Pillow leaves the rest of the image as it is when the
stream ends too early, and says nothing. So these readers mark the pixels that are filled last before they decode. If
the mark is still there, the image may happen to be like it. Then a second decoding with the opposite mark decides.
"""

from __future__ import annotations

import io
from hashlib import shake_128
from typing import Any

import numpy as np
from PIL import GifImagePlugin, Image, ImageFile, PngImagePlugin, WebPImagePlugin

from mdmf_deploy.images.crops import Box

_WIDTH = 64
_NOISE = shake_128(b"the pixels that are filled last").digest(4 * (_WIDTH + 1))


class _Filled(ImageFile.ImageFile):
    """A file whose `load` raises EOFError if the pixels that are filled last are not there."""

    opposite = False
    place: Box
    mark: Image.Image

    def last_row(self) -> int:
        """Return the row that is filled last."""
        raise NotImplementedError

    def last_columns(self) -> slice:
        """Return which columns of the mark are filled last."""
        raise NotImplementedError

    def load_prepare(self) -> None:
        """Make room for the pixels, and mark the last ones."""
        super().load_prepare()
        row, left = self.last_row(), max(0, self.width - _WIDTH) // 2 * 2
        self.place = (left, row, self.width, row + 1)
        blank = Image.new(self.im.mode, (self.width - left, 1))
        noise = _NOISE[: len(blank.tobytes())]
        self.mark = Image.frombytes(blank.mode, blank.size, bytes(b ^ 255 for b in noise) if self.opposite else noise)
        self.im.paste(self.mark.im, self.place)

    def load(self) -> Any:
        """Read the pixels, as Pillow does.

        Raises EOFError if some are missing.
        """
        source = self.fp if self.tile else None
        columns = self.last_columns() if self.tile else slice(0)
        pixels = super().load()
        if source is None or not self._marked(columns):
            return pixels
        assert isinstance(source, io.BytesIO)
        again = type(self)(io.BytesIO(source.getvalue()))
        again.opposite = True
        self.im = Image.new(self.mode, (1, 1)).im  # room for the second decoding
        super(_Filled, again).load()
        if again._marked(columns):
            raise EOFError("its last pixels are missing")
        self.im = again.im
        return super().load()

    def _marked(self, columns: slice) -> bool:
        found = np.asarray(self.crop(self.place))
        return np.array_equal(found[0, columns], np.asarray(self.mark)[0, columns])


class Png(_Filled, PngImagePlugin.PngImageFile):
    """A PNG, filled row by row. The last of seven passes fills the odd rows (Adam7, section 8.2)."""

    def last_row(self) -> int:
        """Return the row that is filled last."""
        odd = self.height > 1 and self.info.get("interlace")
        return self.height - 1 - (self.height % 2 if odd else 0)

    def last_columns(self) -> slice:
        """Return all columns, or the odd ones of a single row, which the sixth pass fills."""
        single = self.height == 1 < self.width and self.info.get("interlace")
        return slice(1, None, 2) if single else slice(None)


class Gif(_Filled, GifImagePlugin.GifImageFile):
    """A GIF, filled pixel by pixel. If it is interlaced, the odd rows come last (appendix E)."""

    def last_row(self) -> int:
        """Return the row that is filled last."""
        assert isinstance(self.tile[0].args, tuple)
        odd = self.height > 1 and self.tile[0].args[1]
        return self.height - 1 - (self.height % 2 if odd else 0)

    def last_columns(self) -> slice:
        """Return the last column."""
        return slice(-1, None)


class WebP(WebPImagePlugin.WebPImageFile):
    """A WebP. libwebp fails without a reason, and lossy data fail for one only: any bits are pixels, until they end."""

    def load(self) -> Any:
        """Read the pixels, as Pillow does.

        Raises EOFError if some are missing, or OSError if lossless pixels are cut or damaged.
        """
        lossy = isinstance(self.fp, io.BytesIO) and self.fp.getvalue()[12:16] != b"VP8L"
        try:
            return super().load()
        except OSError as error:
            if not lossy:
                raise
            raise EOFError("its pixels end too early") from error

"""Pillow's readers of PNG and WebP, which notice pixels that are not there."""

from __future__ import annotations

import io
from hashlib import shake_128
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, WebPImagePlugin

from mdmf_deploy.images.crops import Box

_WIDTH = 64
_NOISE = shake_128(b"the pixels that are filled last").digest(4 * (_WIDTH + 1))


class Png(PngImagePlugin.PngImageFile):
    """A PNG, filled row by row.

    Pillow leaves the last rows as they are if the stream of pixels ends before them, and says nothing. So the row that
    is filled last is marked before. If the mark is still there, the image may happen to be like it. Then a second
    decoding with the opposite mark decides.
    """

    opposite = False
    place: Box
    mark: Image.Image

    def load_prepare(self) -> None:
        """Make room for the pixels, and mark the last ones."""
        super().load_prepare()
        # The last of seven passes fills the odd rows (Adam7, section 8.2).
        odd = self.height > 1 and self.info.get("interlace")
        row, left = self.height - 1 - (self.height % 2 if odd else 0), max(0, self.width - _WIDTH) // 2 * 2
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
        pixels = super().load()
        if source is None or not self._marked():
            return pixels
        assert isinstance(source, io.BytesIO)
        again = type(self)(io.BytesIO(source.getvalue()))
        again.opposite = True
        self.im = Image.new(self.mode, (1, 1)).im  # room for the second decoding
        super(Png, again).load()
        if again._marked():
            raise EOFError("its last pixels are missing")
        self.im = again.im
        return super().load()

    def _marked(self) -> bool:
        # In a single row, the odd columns are filled last, by the sixth pass.
        single = self.height == 1 < self.width and self.info.get("interlace")
        columns = slice(1, None, 2) if single else slice(None)
        found = np.asarray(self.crop(self.place))
        return np.array_equal(found[0, columns], np.asarray(self.mark)[0, columns])


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

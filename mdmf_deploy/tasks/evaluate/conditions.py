"""Conditions: a change made to every image, real and generated alike, before it is judged."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images.decode import decode, read

AS_IS = "as is"
_STEP = re.compile(r"(jpeg|resize):(\d+(?:\.\d+)?)")
_MAX_SCALE = 4.0


@dataclass(frozen=True, slots=True)
class Condition:
    """A change made to every image before it is judged.

    steps: ("resize", factor) and ("jpeg", quality at 4:2:0), applied in this order. No steps leave the file as it is.
    """

    name: str
    steps: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read "as is", "jpeg:75", "resize:0.5", or several steps as "resize:0.5,jpeg:75".

        Raises UsageError naming the step that is none of these.
        """
        if text == AS_IS:
            return cls(text, ())
        return cls(text, tuple(_step(part.strip()) for part in text.split(",")))

    def source(self, path: Path) -> Path | bytes | NDArray[np.uint8]:
        """Return the input that the detector gets in place of the file, or the file itself if it cannot be decoded."""
        if not self.steps:
            return path
        try:
            image = Image.fromarray(decode(read(path)).pixels)
        except ImageError:
            return path
        data = None
        for name, amount in self.steps:
            if name == "resize":
                size = (max(1, round(image.width * amount)), max(1, round(image.height * amount)))
                image, data = image.resize(size, Image.Resampling.LANCZOS), None
            else:
                data = _jpeg(image, int(amount))
                image = Image.fromarray(decode(data).pixels)
        return np.asarray(image) if data is None else data


def _step(text: str) -> tuple[str, float]:
    match = _STEP.fullmatch(text)
    if match:
        name, amount = match[1], float(match[2])
        if name == "resize" and 0 < amount <= _MAX_SCALE:
            return name, amount
        if name == "jpeg" and 1 <= amount <= 100 and amount.is_integer():
            return name, amount
    raise UsageError(
        f"condition {text!r}: expected {AS_IS!r}, jpeg:QUALITY (1 to 100), resize:FACTOR (up to {_MAX_SCALE:g}), "
        "or several joined by commas"
    )


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()

"""Conditions: a change made to every image, real and generated alike, before it is judged."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdmf_deploy.detection.sources import Source
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images.decode import decode, read

AS_IS = "as is"
_STEP = re.compile(r"([a-z]+):(\d+(?:\.\d+)?)")
_MAX_SCALE = 4.0
_MAX_SIGMA = 10.0
# Where the Gaussian is cut off, in sigmas. SciPy's gaussian_filter has the same default.
_TRUNCATE = 4.0

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Unencodable:
    """A source that no encoder takes. Reading it fails, so that the image gets a row of its own that says why."""

    reason: str

    def read(self, size: int = -1, /) -> bytes:
        """Raise ValueError with the reason."""
        raise ValueError(self.reason)


class Change(Protocol):
    """A change made to every image before it is judged."""

    @property
    def name(self) -> str: ...

    def source(self, path: Path) -> Source:
        """Return the input that the detector gets in place of the file."""
        ...


@dataclass(frozen=True, slots=True)
class Condition:
    """A change made to every image before it is judged.

    steps: applied in this order. No steps leave the file as it is.
        ("resize", factor)  Lanczos.
        ("jpeg", quality)   4:2:0.
        ("webp", quality)   lossy.
        ("blur", sigma)     Gaussian, in pixels, mirrored at the edges.
        ("noise", std)      Gaussian, in every channel alone, with pixels in [0, 1]. The sum is clipped and rounded.
            The same pixels get the same noise on every machine. For another std the same noise is scaled.
    """

    name: str
    steps: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read "as is", or steps such as "jpeg:75", "blur:2" and "noise:0.1", several as "resize:0.5,jpeg:75".

        Raises UsageError naming the step that is none of these.
        """
        if text == AS_IS:
            return cls(text, ())
        return cls(text, tuple(_step(part.strip()) for part in text.split(",")))

    def source(self, path: Path) -> Path | bytes | Pixels | Unencodable:
        """Return the input that the detector gets in place of the file, or the file itself if it cannot be decoded."""
        if not self.steps:
            return path
        try:
            changed: Pixels | bytes = decode(read(path)).pixels
        except ImageError:
            return path
        for name, amount in self.steps:
            pixels = decode(changed).pixels if isinstance(changed, bytes) else changed
            try:
                changed = _STEPS[name].apply(pixels, amount)
            except (OSError, ValueError) as error:  # A format may be too small for the image's sides.
                return Unencodable(f"{name} cannot hold {pixels.shape[1]} x {pixels.shape[0]} pixels ({error})")
        return changed


def _step(text: str) -> tuple[str, float]:
    match = _STEP.fullmatch(text)
    if match and match[1] in _STEPS and _STEPS[match[1]].accepts(float(match[2])):
        return match[1], float(match[2])
    known = ", ".join(f"{name}:{step.values}" for name, step in _STEPS.items())
    raise UsageError(f"condition {text!r}: expected {AS_IS!r}, {known}, or several joined by commas")


def _jpeg(pixels: Pixels, quality: float) -> bytes:
    return _encoded(pixels, "JPEG", quality=int(quality), subsampling="4:2:0")


def _webp(pixels: Pixels, quality: float) -> bytes:
    return _encoded(pixels, "WEBP", quality=int(quality))


def _encoded(pixels: Pixels, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def _resize(pixels: Pixels, factor: float) -> Pixels:
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _blur(pixels: Pixels, sigma: float) -> Pixels:
    radius = int(_TRUNCATE * sigma + 0.5)
    if radius == 0:
        return pixels
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    # One channel at a time, because a float64 takes eight times the memory.
    channels = [_along_rows(_along_rows(channel, weights).T, weights).T for channel in np.moveaxis(pixels, 2, 0)]
    return _to_pixels(np.stack(channels, axis=2))


def _along_rows(values: NDArray[np.generic], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted sums of neighbours in the same column, (H, W). weights: an odd number."""
    margin, height = len(weights) // 2, len(values)
    padded = np.pad(values, ((margin, margin), (0, 0)), mode="symmetric").astype(np.float64)
    total = np.zeros(values.shape)
    for at, weight in enumerate(weights):
        total += weight * padded[at : at + height]
    return total


def _noise(pixels: Pixels, std: float) -> Pixels:
    digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()
    # NumPy never changes the numbers that RandomState draws from a seed (NEP 19). Its newer generators may change.
    normal = np.random.RandomState(np.frombuffer(digest, "<u4")).standard_normal(pixels.shape)
    return _to_pixels(pixels + 255 * std * normal)


def _to_pixels(values: NDArray[np.float64]) -> Pixels:
    return np.rint(values).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Step:
    """One kind of step.  values: which amounts it accepts, in words."""

    values: str
    accepts: Callable[[float], bool]
    apply: Callable[[Pixels, float], Pixels | bytes]


def _is_quality(amount: float) -> bool:
    return 1 <= amount <= 100 and amount.is_integer()


_STEPS = {
    "jpeg": _Step("QUALITY (1 to 100)", _is_quality, _jpeg),
    "webp": _Step("QUALITY (1 to 100)", _is_quality, _webp),
    "resize": _Step(f"FACTOR (up to {_MAX_SCALE:g})", lambda amount: 0 < amount <= _MAX_SCALE, _resize),
    "blur": _Step(f"SIGMA (pixels, 0 to {_MAX_SIGMA:g})", lambda amount: amount <= _MAX_SIGMA, _blur),
    "noise": _Step("STD (of pixels in [0, 1], 0 to 1)", lambda amount: amount <= 1, _noise),
}

"""One source -> what is known of it and the model's input: read, decode, crop and normalise, on the calling thread."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images import decode as images
from mdmf_deploy.images.crops import boxes, normalise, squares
from mdmf_deploy.images.decode import DecodedBoxes, ReadLimits
from mdmf_deploy.images.inputs import uri

Source = str | Path | bytes | NDArray[np.uint8]
"""The path of an image file, the bytes of one, or its pixels, (H, W, 3) RGB."""


class Scored(NamedTuple):
    """One image's score, its patches' contributions, and its share of a batch's milliseconds."""

    score: float
    contributions: list[float]
    ms_engine: float | None
    ms_mmd: float


@dataclass(frozen=True, slots=True)
class Extraction:
    """What became of one source.

    uri: of a path, as mdmf_deploy.images.inputs.uri writes it, else "bytes:<n>" or "array:<n>", the nth source from 0.
    sha256: of the file's bytes; of an array's pixels and shape; "" where nothing could be read.
    signatures: (N, d), of all crops, one after the other; None where error says why.
    width, height, format, crop: as in mdmf_deploy.detection.rows.Row; None where it did not come to that.
    ms_read: to read and to hash.  ms_decode: bytes to pixels.  ms_crop: pixels to the model's input.
    ms_engine: a batch's time is divided evenly among its images. None where it did not come to that.
    scored: gives what a GPU made of it, which had no need to hand out signatures; None where none did.
    """

    uri: str
    sha256: str
    error: ImageError | None = None
    signatures: NDArray[np.float32] | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    crop: str | None = None
    ms_read: float | None = None
    ms_decode: float | None = None
    ms_crop: float | None = None
    ms_engine: float | None = None
    scored: Callable[[], Scored] | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A source on its way to the engine.  tensor: (n, 3, S, S), None where signed holds an error."""

    extracted: Extraction
    tensor: NDArray[np.float32] | None

    @property
    def crops(self) -> int:
        return 0 if self.tensor is None else len(self.tensor)


def prepare(n: int, source: Source, preprocessing: Preprocessing, crops: int, limits: ReadLimits) -> Prepared:
    """The nth source, ready for the engine, as at most `crops` crops; what cannot be read is an error in `signed`.

    Raises UsageError for a source of another type.
    """
    clock = _Clock()
    name, sha256 = _name(n, source), ""
    ms_read: float | None = None
    place = partial(boxes, size=preprocessing.crop, count=crops)
    try:
        if isinstance(source, np.ndarray):
            _check_array(source, name)
            sha256 = hashlib.sha256(repr(source.shape).encode() + source.tobytes()).hexdigest()
            ms_read = clock.lap()
            image = _cut(source, place(*source.shape[:2]))
        else:
            data = source if isinstance(source, bytes) else images.read(source, limits)
            sha256 = hashlib.sha256(data).hexdigest()
            ms_read = clock.lap()
            image = images.decode_boxes(data, place, limits)
    except ImageError as error:
        if ms_read is None:
            return Prepared(Extraction(name, sha256, error, ms_read=clock.lap()), None)
        return Prepared(Extraction(name, sha256, error, ms_read=ms_read, ms_decode=clock.lap()), None)
    ms_decode = clock.lap()
    crop = squares(image.boxes, preprocessing.crop)
    tensor = normalise(crop.pixels, preprocessing)
    extracted = Extraction(
        name,
        sha256,
        width=image.width,
        height=image.height,
        format=image.format,
        crop=crop.kind,
        ms_read=ms_read,
        ms_decode=ms_decode,
        ms_crop=clock.lap(),
    )
    return Prepared(extracted, tensor)


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Milliseconds since the last lap."""
        last, self._last = self._last, time.perf_counter()
        return 1e3 * (self._last - last)


def _name(n: int, source: Source) -> str:
    if isinstance(source, str | Path):
        return uri(source)
    if isinstance(source, bytes):
        return f"bytes:{n}"
    if isinstance(source, np.ndarray):
        return f"array:{n}"
    raise UsageError(f"source {n} is a {type(source).__name__}; give a path, bytes, or an (H, W, 3) uint8 array")


def _check_array(pixels: NDArray[np.uint8], name: str) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(
            "unsupported_mode", f"{name} is {pixels.dtype} of shape {pixels.shape}; expected (H, W, 3) uint8, RGB"
        )
    if pixels.size == 0:
        raise ImageError("empty", f"{name} has shape {pixels.shape}: it holds no pixels")


def _cut(pixels: NDArray[np.uint8], placed: list[tuple[int, int, int, int]]) -> DecodedBoxes:
    parts = tuple(pixels[top:bottom, left:right] for left, top, right, bottom in placed)
    return DecodedBoxes(parts, pixels.shape[1], pixels.shape[0], "array")

"""The parent's side of the task "image"."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.crops import Box, Pixels
from mdmf_deploy.images.isolation.conversation import Allowance, conversation
from mdmf_deploy.images.isolation.image_task import Asked, Boxes, Found, Size
from mdmf_deploy.images.isolation.wire import Garbled
from mdmf_deploy.images.limits import Note, ReadLimits
from mdmf_deploy.images.raster import Decoded, DecodedBoxes

LEAST, SPARE = 64 * 2**20, 32 * 2**20
"""Bytes that every image may take, and bytes beyond a container's own bound, for the codecs' small tables."""

_BAND = 256  # rows of a whole image that are converted at once
# How libtiff says that pixels are missing. A zlib error without words means that its input has ended.
_SHORT = re.compile(
    r"premature end of (?:jpeg|input) file|not enough data|read error (?:on|at) (?:strip|tile|scanline)"
    r"|unexpected end|ZLib error: \.$",
    re.I,
)

# How Pillow says that it has no name for a layout of pixels.
_MODE = re.compile("unknown (?:pixel mode|data organization)|unrecognized (?:raw|image) mode")


def boxes(container: Container, place: Callable[[int, int], Sequence[Box]], limits: ReadLimits) -> DecodedBoxes:
    """Decode the boxes of a container (see the package)."""
    parts: list[Pixels] = []

    def plan(size: Size) -> list[Box]:
        placed = list(place(size.height, size.width))
        parts.extend(np.empty((bottom - top, right - left, 3), np.uint8) for left, top, right, bottom in placed)
        return placed

    size, notes = _decoded(container, plan, parts, limits)
    return DecodedBoxes(tuple(parts), size.width, size.height, container.format, notes)


def whole(container: Container, limits: ReadLimits) -> Decoded:
    """Decode a container (see the package). The child converts it in bands, because a copy of all needs more memory."""
    pixels = np.empty((0, 0, 3), np.uint8)
    parts: list[Pixels] = []

    def plan(size: Size) -> list[Box]:
        nonlocal pixels
        pixels = np.empty((size.height, size.width, 3), np.uint8)
        tops = range(0, size.height, _BAND)
        parts.extend(pixels[top : top + _BAND] for top in tops)
        return [(0, top, size.width, min(size.height, top + _BAND)) for top in tops]

    size, notes = _decoded(container, plan, parts, limits)
    return Decoded(pixels, size.width, size.height, container.format, notes)


def _decoded(
    container: Container, plan: Callable[[Size], list[Box]], parts: list[Pixels], limits: ReadLimits
) -> tuple[Size, tuple[Note, ...]]:
    """Fill `parts`, to which `plan` adds one for each of the boxes that it returns."""
    asked = Asked(
        container.format,
        container.width,
        container.height,
        container.orientation,
        container.notes,
        limits,
        type(container) is not Container,
    )
    allowance = Allowance(max(LEAST, min(container.memory, limits.max_memory)) + SPARE, limits.max_seconds)
    try:
        with conversation("image", container.data, asked, allowance, container.format) as child:
            size = child.receive(Size)
            if min(size.width, size.height) < 1:
                raise Garbled(f"a size of {size.width} x {size.height}")
            limits.check_pixels(container.format, size.width, size.height)
            child.send(Boxes(plan(size)))
            found = child.receive(Found)
            for part in parts:
                child.fill(part)
    except ImageError as error:
        if error.code == "corrupt":
            _refuse_short(container.format, getattr(error, "__notes__", ()))
            if _MODE.search(str(error)):
                text = f"{container.format}: its pixel layout cannot be read here; convert it to 8-bit RGB"
                raise ImageError("unsupported_mode", text) from error
        raise
    _refuse_short(container.format, child.messages)
    return size, found.notes


def _refuse_short(format: str, messages: Iterable[str]) -> None:
    """Raise ImageError truncated if libtiff says that pixels are missing."""
    for message in messages:
        if format == "tiff" and _SHORT.search(message):
            raise ImageError("truncated", f"tiff: some of its pixels are not there ({message})")

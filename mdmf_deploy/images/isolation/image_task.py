"""The task "image": decode boxes of one image. Runs in the child."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from mdmf_deploy.images import raster, tiff_jpeg
from mdmf_deploy.images.containers import Container, parse
from mdmf_deploy.images.isolation.child import Channel
from mdmf_deploy.images.limits import Note, ReadLimits


class Asked(msgspec.Struct, frozen=True):
    """A Container without its data, and the bounds on it.

    more: whether its parser returns more than a Container has, so that the data must be parsed again.
    """

    format: str
    width: int
    height: int
    orientation: int | None
    notes: tuple[Note, ...]
    limits: ReadLimits
    more: bool


class Size(msgspec.Struct, frozen=True):
    """The size of the image after its orientation. The parent answers with boxes."""

    height: int
    width: int


class Boxes(msgspec.Struct, frozen=True):
    """The answer: (left, top, right, bottom) of each box."""

    boxes: list[tuple[int, int, int, int]]


class Found(msgspec.Struct, frozen=True):
    """The image is decoded. An array follows for each box."""

    notes: tuple[Note, ...]


def decode(payload: bytes, channel: Channel) -> None:
    """Decode the boxes that the parent asks for once it knows the size."""
    asked = channel.parameters(Asked)
    if asked.more:
        container = replace(parse(payload, asked.limits), orientation=asked.orientation, notes=asked.notes)
    else:
        container = Container(
            format=asked.format,
            data=payload,
            width=asked.width,
            height=asked.height,
            orientation=asked.orientation,
            memory=0,
            notes=asked.notes,
        )

    def place(height: int, width: int) -> list[tuple[int, int, int, int]]:
        return channel.ask(Size(height, width), Boxes).boxes

    found = raster.boxes(container, place, asked.limits)
    if container.format == "tiff":
        tiff_jpeg.check(container.data, asked.limits)
    channel.send(Found(found.notes))
    for pixels in found.boxes:
        channel.send_array(np.ascontiguousarray(pixels))

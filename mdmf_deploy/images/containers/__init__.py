"""The structure of image files: one parser per format, which finds what holds the pixels and never decodes any.

A parser walks over the parts of a file, in time linear in its bytes, before any codec sees it. It keeps only the parts
that the first image's pixels depend on. So neither metadata nor later images can decide whether pixels are read, nor
cost anything. It also says what decoding will take, so that the limits hold before memory is allocated.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.limits import Note, ReadLimits
from mdmf_deploy.images.magic import image_format, unsupported

# format -> module and its function, (data, limits) -> Container
PARSERS: dict[str, tuple[str, str]] = {
    "jpeg": ("mdmf_deploy.images.containers.jpeg", "parse"),
    "png": ("mdmf_deploy.images.containers.png", "parse"),
    "webp": ("mdmf_deploy.images.containers.webp", "parse"),
    "gif": ("mdmf_deploy.images.containers.gif", "parse"),
    "avif": ("mdmf_deploy.images.containers.heif", "parse"),
    "heif": ("mdmf_deploy.images.containers.heif", "parse"),
    "jpeg2000": ("mdmf_deploy.images.containers.jpeg2000", "parse"),
    "jpeg_xl": ("mdmf_deploy.images.containers.jpeg_xl", "parse"),
    "bmp": ("mdmf_deploy.images.containers.bmp", "parse"),
    "tiff": ("mdmf_deploy.images.containers.tiff", "parse"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """An image file whose structure is known, but none of its pixels.

    format: a name in PARSERS.
    data: a file of the same format, with the parts that the pixels of the first image depend on.
    width, height: of the pixels as stored.
    orientation: EXIF, 1 to 8, or None if only the decoder knows it.
    memory: an upper bound of the bytes that decoding the whole image takes.
    isolated: whether it is decoded in a child process, because its structure does not bound what decoding costs.
    notes: what a careful reader would say about the file.
    offset: left and top of the pixels in `data`, if they cover only a part of the width and height; the rest is
        transparent.
    """

    format: str
    data: bytes
    width: int
    height: int
    orientation: int | None
    memory: int
    isolated: bool = False
    notes: tuple[Note, ...] = ()
    offset: tuple[int, int] | None = None


def parse(data: bytes, limits: ReadLimits) -> Container:
    """Find the first image in a file.

    Raises ImageError: unsupported_format for another kind of file, and the codes that its parser raises.
    """
    format = image_format(data)
    if format is None:
        raise ImageError("unsupported_format", unsupported(data))
    module, name = PARSERS[format]
    container: Container = getattr(importlib.import_module(module), name)(data, limits)
    return container

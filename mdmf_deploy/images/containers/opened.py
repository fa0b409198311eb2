"""The structure of a file as Pillow reads it."""

from __future__ import annotations

from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.limits import ReadLimits


def opened_by_pillow(data: bytes, format: str, limits: ReadLimits) -> Container:
    """Return the structure that Pillow finds. Temporary: each format gets a parser of its own."""
    from mdmf_deploy.images import raster

    image = raster.opened(Container(format=format, data=data, width=0, height=0, orientation=None, memory=0), limits)
    width, height = image.size
    return Container(format=format, data=data, width=width, height=height, orientation=None, memory=4 * width * height)

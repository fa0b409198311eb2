"""The structure of BMP files."""

from __future__ import annotations

from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.containers.opened import opened_by_pillow
from mdmf_deploy.images.limits import ReadLimits


def parse(data: bytes, limits: ReadLimits) -> Container:
    """Return the structure of the file's first image."""
    return opened_by_pillow(data, "bmp", limits)

"""The structure of HEIF and AVIF files."""

from __future__ import annotations

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.limits import ReadLimits
from mdmf_deploy.images.magic import unsupported


def parse(data: bytes, limits: ReadLimits) -> Container:
    """Return the structure of the file's first image."""
    raise ImageError("unsupported_format", unsupported(data))

"""Decode in a child process, with limits on its memory and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mdmf_deploy.images.limits import ReadLimits

if TYPE_CHECKING:
    from mdmf_deploy.images.containers import Container
    from mdmf_deploy.images.crops import Box
    from mdmf_deploy.images.raster import DecodedBoxes


def boxes(container: Container, place: Callable[[int, int], Sequence[Box]], limits: ReadLimits) -> DecodedBoxes:
    """Decode the boxes of a container in a child process."""
    from mdmf_deploy.images import raster

    return raster.boxes(container, place, limits)

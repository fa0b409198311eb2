"""What Pillow's readers warn of while this package decodes goes to its log, and nowhere else."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

_LOG = logging.getLogger("mdmf_deploy.images")


class PillowWarnings:
    """Stands in for the module `warnings` inside Pillow's readers; logs what they say while this thread decodes.

    warnings.catch_warnings would swap the whole process's filters, and is not thread-safe before Python 3.14. What
    Pillow warns of concerns metadata and its own pixel limit; damaged pixels are exceptions. Outside `kept` all goes
    on as it was.
    """

    def __init__(self) -> None:
        self._thread = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    @contextmanager
    def kept(self) -> Iterator[None]:
        self._thread.keeping = True
        try:
            yield
        finally:
            self._thread.keeping = False

    def warn(
        self, message: Any, category: type[Warning] | None = None, stacklevel: int = 1, *rest: Any, **named: Any
    ) -> None:
        if getattr(self._thread, "keeping", False):
            _LOG.debug("Pillow: %s", message)
        else:
            warnings.warn(message, category, stacklevel + 1, *rest, **named)


PILLOW_WARNINGS = PillowWarnings()
for _module in (Image, PngImagePlugin, TiffImagePlugin, JpegImagePlugin):
    vars(_module)["warnings"] = PILLOW_WARNINGS

"""Importing what would otherwise report its use over the network: OpenVINO does at import, NNCF at every call."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_REPORTER = "openvino_telemetry"


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """Import openvino or nncf in here, first: they take their reporter for missing, and go on without it."""
    present = sys.modules.get(_REPORTER)
    sys.modules[_REPORTER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_REPORTER]
        if present is not None:
            sys.modules[_REPORTER] = present

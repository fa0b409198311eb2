"""Libraries that the tests' environment has and another machine may lack.

A missing library fails a test in CI, where skipping would hide that nothing was checked. Elsewhere it skips the test.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest


def needed(name: str) -> Any:
    """Import a module."""
    if os.environ.get("CI") == "true":
        return importlib.import_module(name)
    return pytest.importorskip(name, exc_type=ImportError)


def needed_for_int8() -> None:
    """Import NNCF, without its telemetry."""
    from mdmf_deploy.tasks.export.int8 import import_nncf

    try:
        import_nncf()
    except ImportError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"int8 needs {error.name}")

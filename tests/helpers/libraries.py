"""Libraries that the tests' environment has, and another machine may lack."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest


def needed(name: str) -> Any:
    """The module; its absence fails a test in CI, where it would hide what was not checked, and skips it elsewhere."""
    if os.environ.get("CI") == "true":
        return importlib.import_module(name)
    return pytest.importorskip(name, exc_type=ImportError)

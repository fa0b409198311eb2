"""The scripts of benchmarks/gpu as modules, imported by their plain names as they import each other."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture(scope="session")
def gpu() -> Iterator[SimpleNamespace]:
    """Every script of benchmarks/gpu, by name."""
    names = [path.stem for path in GPU.glob("*.py")]
    paths = [str(GPU), str(GPU.parent)]
    sys.path[:0] = paths
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        for path in paths:
            sys.path.remove(path)
        for name in [*names, "common"]:
            sys.modules.pop(name, None)

"""The kernels built for this machine, once a session; and where the compilers are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from host_kernels import Builder

from mdmf_deploy.mmd.kernels import Kernel

WANTED = [("plain", "fp32"), ("tiled", "fp32"), ("tensor", "fp16"), ("tensor", "bf16"), ("tensor", "tf32")]


@pytest.fixture(scope="session")
def gxx() -> str:
    """g++; its absence is a failure in CI, and a reason to skip elsewhere."""
    if found := shutil.which("g++"):
        return found
    if os.environ.get("CI") == "true":
        pytest.fail("no g++ on this machine; the kernels' host build needs it")
    pytest.skip("no g++ on this machine")


@pytest.fixture(scope="session")
def host(gxx: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    builder = Builder(tmp_path_factory.mktemp("kernels"))
    builder.start(*(Kernel(version, operand, width) for width in (64, 128, 256) for version, operand in WANTED))
    yield builder
    builder.close()

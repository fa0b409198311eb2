"""The compiler, and the kernels that it builds for this machine."""

from __future__ import annotations

import pytest
from fakes.host_kernels import Builder, builder, compiler

from mdmf_deploy.mmd.cuda.kernels import Kernel

WANTED = [("plain", "fp32"), ("tiled", "fp32")]
WANTED += [(version, operand) for version in ("tensor", "wgmma") for operand in ("fp16", "bf16", "fp16x2")]


@pytest.fixture(scope="session")
def gxx() -> str:
    return compiler()


@pytest.fixture(scope="session")
def host() -> Builder:
    made = builder()
    wanted = [Kernel(version, operand, width) for width in (64, 128, 256) for version, operand in WANTED]
    # Wider ones differ from fp16 in their numbers alone.
    made.start(*(kernel for kernel in wanted if kernel.operand != "bf16" or kernel.width == 64))
    return made

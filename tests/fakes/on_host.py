"""A Device that runs the GPU's kernels on this machine: engines/kernels as g++ builds them, host_device.py."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from fakes.host_device import Entry, HostDevice
from fakes.host_kernels import HostKernel, builder, compiler

from mdmf_deploy.mmd.cuda.kernels import VERSIONS, Launch

ENTRIES = ("prepare", "cross", "within", "finish")
C_TYPES = {np.uintp: ctypes.c_void_p, np.float32: ctypes.c_float, np.float64: ctypes.c_double, np.int32: ctypes.c_int}


def host_device(sm: int = 89, memory: int = 1 << 30) -> HostDevice:
    """A pretended GPU of that compute capability, with so many bytes.  Without g++ as host_kernels.compiler."""
    compiler()
    return HostDevice(_build, sm, memory)


def _build(source: Path, options: tuple[str, ...]) -> Mapping[str, Entry]:
    defines = " ".join(options)
    version = next(name for name, (file, _) in VERSIONS.items() if file == source.name)
    [width] = re.findall(r"-DMDMF_WIDTH=(\d+)", defines)
    [operand] = re.findall(r"-DMDMF_(FP32|TF32|FP16|BF16)", defines)
    kernel = builder()(version, operand.lower(), int(width))
    return {f"mdmf_{name}": partial(_call, kernel, name) for name in ENTRIES}


def _call(
    kernel: HostKernel, name: str, grid: tuple[int, int, int], block: int, shared: int, *arguments: np.generic
) -> None:
    given = [C_TYPES[type(argument)](argument.item()) for argument in arguments]
    kernel._launch(name, Launch(f"mdmf_{name}", grid, block, shared), *given)

"""A Device that runs the GPU kernels on this machine: engines/kernels compiled by g++, on host_device.HostDevice."""

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

ENTRIES = ("mdmf_prepare", "mdmf_cross", "mdmf_finish")
C_TYPES = {np.uintp: ctypes.c_void_p, np.float32: ctypes.c_float, np.float64: ctypes.c_double, np.int32: ctypes.c_int}


def host_device(sm: int = 89, memory: int = 1 << 30) -> HostDevice:
    """Return a fake GPU of this compute capability and memory, in bytes. Without g++ it fails as `compiler` does."""
    compiler()
    return HostDevice(_build, sm, memory)


def _build(source: Path, options: tuple[str, ...]) -> Mapping[str, Entry]:
    defines = " ".join(options)
    version = next(name for name, (file, _) in VERSIONS.items() if file == source.name)
    [width] = re.findall(r"-DMDMF_WIDTH=(\d+)", defines)
    [operand] = re.findall(r"-DMDMF_(FP32|FP16X2|FP16|BF16)", defines)
    kernel = builder()(version, operand.lower(), int(width))
    return {entry: partial(_call, kernel, entry) for entry in ENTRIES}


def _call(
    kernel: HostKernel, entry: str, grid: tuple[int, int, int], block: int, shared: int, *arguments: np.generic
) -> None:
    given = [C_TYPES[type(argument)](argument.item()) for argument in arguments]
    kernel.launch(Launch(entry, grid, block, shared), *given)

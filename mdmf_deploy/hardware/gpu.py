"""Is there a GPU, and a driver that serves it?  Asks the driver alone: no context, no other library, nothing compiled.

CUDA Driver API, through ctypes: cuInit, cuDriverGetVersion, cuDeviceGet* (docs.nvidia.com/cuda/cuda-driver-api).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from mdmf_deploy.errors import MdmfError, RuntimeUnavailable

# The oldest driver that any part of the package can work with, as the CUDA version that it serves.
OLDEST = (12, 0)

# The driver, by the name that the loader knows.
LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_PROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # CUdevice_attribute
_INSTALL = "install NVIDIA's driver (nvidia.com/drivers), or start the container with --gpus all"
# CUresult of cuInit -> what it means, and what to do.
_REASONS = {
    34: ("libcuda is the toolkit's stub, not a driver", _INSTALL),
    100: ("the NVIDIA driver sees no GPU", "see whether `nvidia-smi` names one, and CUDA_VISIBLE_DEVICES"),
    802: ("the GPU is not ready yet", "start nvidia-fabricmanager, or wait until it has started"),
    803: ("the NVIDIA driver and its library are of different versions", "restart the machine after a driver update"),
    804: ("the NVIDIA driver is older than the libcuda beside it", "update the driver"),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    compute_capability: (major, minor).  memory: bytes in all.  driver: the newest CUDA that the driver serves.
    """

    name: str
    compute_capability: tuple[int, int]
    memory: int
    driver: tuple[int, int]
    multiprocessors: int

    @property
    def sm(self) -> int:
        """The compute capability as compilers spell it: 89 for 8.9."""
        return 10 * self.compute_capability[0] + self.compute_capability[1]


def probe(needs: tuple[int, int] = OLDEST) -> Gpu:
    """The GPU that CUDA programs are given first.  needs: the CUDA version that its driver must serve.

    Raises RuntimeUnavailable, in one line that says what would help, without a driver, with one too old, without a GPU.
    """
    return gpus(needs)[0]


def gpus(needs: tuple[int, int] = OLDEST) -> tuple[Gpu, ...]:
    """Every GPU that this process may use, in CUDA's order, one at least.  Raises RuntimeUnavailable as probe does."""
    call = driver()
    version = ctypes.c_int()
    if code := call("cuDriverGetVersion", ctypes.byref(version)):
        raise RuntimeUnavailable(f"no GPU: the NVIDIA driver does not tell its version (CUDA error {code}); {_INSTALL}")
    serves = (version.value // 1000, version.value % 1000 // 10)
    if serves < needs:
        told = f"the NVIDIA driver serves CUDA {_dotted(serves)}, and {_dotted(needs)} is needed"
        raise RuntimeUnavailable(f"no GPU: {told}; update the driver")
    if code := call("cuInit", 0):
        _refuse(code)
    count = ctypes.c_int()
    if code := call("cuDeviceGetCount", ctypes.byref(count)):
        _refuse(code)
    if count.value == 0:
        _refuse(100)
    return tuple(_gpu(call, index, serves) for index in range(count.value))


def _gpu(call: Callable[..., int], index: int, serves: tuple[int, int]) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    numbers = [ctypes.c_int() for _ in range(3)]
    codes = [
        call("cuDeviceGet", ctypes.byref(device), index),
        call("cuDeviceGetName", name, len(name), device),
        call("cuDeviceTotalMem_v2", ctypes.byref(memory), device),
    ]
    for attribute, number in zip((_MAJOR, _MINOR, _PROCESSORS), numbers, strict=True):
        codes.append(call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device))
    if any(codes):
        _refuse(next(code for code in codes if code))
    major, minor, processors = (number.value for number in numbers)
    return Gpu(name.value.decode(errors="replace"), (major, minor), memory.value, serves, processors)


def driver() -> Callable[..., int]:
    """Calls a function of the driver's by name; returns its CUresult, 0 for success.

    Raises RuntimeUnavailable if there is no driver, or no such function in it.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        # The loader's own words tell a library that is not there from one that does not fit this machine.
        there = "cannot open shared object file" not in str(error) and os.name == "posix"
        what = f"{LIBRARY} cannot be loaded ({error})" if there else f"there is no NVIDIA driver ({LIBRARY})"
        raise RuntimeUnavailable(f"no GPU: {what}; {_INSTALL}") from error

    def call(name: str, *arguments: object) -> int:
        function = getattr(library, name, None)
        if function is None:
            raise RuntimeUnavailable(f"no GPU: {LIBRARY} has no {name}; update the driver")
        return int(function(*arguments))

    return call


def _refuse(code: int) -> None:
    what, remedy = _REASONS.get(code, (f"the NVIDIA driver fails with CUDA error {code}", "see what `nvidia-smi` says"))
    raise RuntimeUnavailable(f"no GPU: {what}; {remedy}")


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def this_gpu() -> str | None:
    """The name of the GPU that CUDA programs are given first; None without one, or without its driver."""

    try:
        return probe().name
    except MdmfError:
        return None

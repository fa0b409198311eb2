"""The GPUs of this machine, as their driver describes them. Creates no context and loads no other library.

Calls the CUDA Driver API through ctypes: cuInit, cuDriverGetVersion, cuDeviceGet*
(docs.nvidia.com/cuda/cuda-driver-api).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from mdmf_deploy.errors import RuntimeUnavailable

# The oldest driver that any part of the package can use, by the CUDA version it supports.
OLDEST = (12, 0)

# The driver's library, by the name the loader looks for.
LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_PROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # CUdevice_attribute
_INSTALL = "install NVIDIA's driver (nvidia.com/drivers), or start the container with --gpus all"
# CUresult of cuInit -> meaning, remedy.
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

    compute_capability: (major, minor).  memory: total bytes.  driver: the newest CUDA version the driver supports.
    """

    name: str
    compute_capability: tuple[int, int]
    memory: int
    driver: tuple[int, int]
    multiprocessors: int

    @property
    def sm(self) -> int:
        """The compute capability as compilers write it: 89 for 8.9."""
        return 10 * self.compute_capability[0] + self.compute_capability[1]


def probe(needs: tuple[int, int] = OLDEST) -> Gpu:
    """Return the first GPU in CUDA's order.  needs: the CUDA version its driver must support.

    Raises RuntimeUnavailable with a remedy if there is no driver, the driver is too old, or there is no GPU.
    """
    return gpus(needs)[0]


def this_gpu() -> str | None:
    """Return the name of the first GPU in CUDA's order, or None without a usable GPU and driver."""
    try:
        return probe().name
    except RuntimeUnavailable:
        return None


def gpus(needs: tuple[int, int] = OLDEST) -> tuple[Gpu, ...]:
    """Return every GPU this process may use, at least one, in CUDA's order. Raises RuntimeUnavailable like probe."""
    call = driver()
    version = ctypes.c_int()
    if code := call("cuDriverGetVersion", ctypes.byref(version)):
        raise RuntimeUnavailable(
            f"no GPU: the NVIDIA driver does not report its version (CUDA error {code}); {_INSTALL}"
        )
    serves = (version.value // 1000, version.value % 1000 // 10)
    if serves < needs:
        reason = f"the NVIDIA driver serves CUDA {_dotted(serves)}, and {_dotted(needs)} is needed"
        raise RuntimeUnavailable(f"no GPU: {reason}; update the driver")
    if code := call("cuInit", 0):
        _refuse(code)
    count = ctypes.c_int()
    if code := call("cuDeviceGetCount", ctypes.byref(count)):
        _refuse(code)
    if count.value == 0:
        _refuse(100)
    return tuple(_gpu(call, index, serves) for index in range(count.value))


def driver() -> Callable[..., int]:
    """Return a function that calls a driver function by name and returns its CUresult, 0 for success.

    Raises RuntimeUnavailable if there is no driver, or if the driver has no such function.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        # Only the loader's message distinguishes a missing library from one that does not fit this machine.
        there = "cannot open shared object file" not in str(error) and os.name == "posix"
        problem = f"{LIBRARY} cannot be loaded ({error})" if there else f"there is no NVIDIA driver ({LIBRARY})"
        raise RuntimeUnavailable(f"no GPU: {problem}; {_INSTALL}") from error

    def call(name: str, *arguments: object) -> int:
        function = getattr(library, name, None)
        if function is None:
            raise RuntimeUnavailable(f"no GPU: {LIBRARY} has no {name}; update the driver")
        return int(function(*arguments))

    return call


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


def _refuse(code: int) -> None:
    unknown = f"the NVIDIA driver fails with CUDA error {code}", "see what `nvidia-smi` says"
    problem, remedy = _REASONS.get(code, unknown)
    raise RuntimeUnavailable(f"no GPU: {problem}; {remedy}")


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"

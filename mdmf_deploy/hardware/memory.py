"""Arrays in host memory, other libraries' arrays on a GPU, and the error for memory that runs out."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import OutOfMemory, ShapeMismatch
from mdmf_deploy.hardware.device import LEGACY_STREAM, Device, Memory, Stream

# Larger arrays are uploaded through this many bytes of pinned memory.
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A C-contiguous float32 array on the GPU.

    stream: the cudaStream_t on which it is being written, or None if it is ready.
    """

    pointer: int
    shape: tuple[int, ...]
    stream: int | None

    def images(self, start: int, count: int) -> DeviceView:
        """Return a view of `count` images from `start` on, along the first axis."""
        stride = 4 * math.prod(self.shape[1:])
        return DeviceView(self.pointer + start * stride, (count, *self.shape[1:]), self.stream)


def is_on_device(array: object) -> bool:
    """Return whether an array lies on a GPU and exposes its address (PyTorch, CuPy, pycuda, an engine's output)."""
    return hasattr(array, "__cuda_array_interface__")


def device_view(array: Any) -> DeviceView:
    """Read an array's `__cuda_array_interface__` (version 3, or an older one, which names no stream).

    See numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html.
    Raises ShapeMismatch if the array is not C-contiguous float32.
    """
    interface = array.__cuda_array_interface__
    shape = tuple(interface["shape"])
    if interface["typestr"] not in ("<f4", "=f4") or interface.get("mask") is not None:
        raise ShapeMismatch(f"signatures on the GPU: expected float32, got {interface['typestr']}; convert them first")
    strides = interface.get("strides")
    if strides is not None and 0 not in shape:
        dense = 4
        for length, stride in zip(reversed(shape), reversed(strides), strict=True):
            if length > 1 and stride != dense:
                raise ShapeMismatch(
                    f"signatures on the GPU: expected C-contiguous {shape}, got strides {tuple(strides)}; make a "
                    "contiguous copy first"
                )
            dense *= length
    # Most libraries with an older interface write on the default stream.
    stream = interface.get("stream") if interface["version"] >= 3 else LEGACY_STREAM
    if stream == 0:
        raise ShapeMismatch("signatures on the GPU: stream 0 is ambiguous; give 1 or 2 for the default stream")
    return DeviceView(int(interface["data"][0]), shape, stream)


def host_view(pointer: int, nbytes: int) -> NDArray[np.uint8]:
    """Return (nbytes,) uint8 over host memory that the caller keeps alive."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))


def upload(device: Device, array: NDArray[Any], stream: Stream, remedy: str) -> Memory:
    """Copy an array to the GPU and wait until it is there. Raises OutOfMemory with the remedy."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    memory = device.allocate(data.nbytes, remedy)
    staging = device.allocate(min(_CHUNK, data.nbytes), remedy, pinned=True)
    try:
        for start in range(0, data.nbytes, _CHUNK):
            part = data[start : start + _CHUNK]
            staging.host[: len(part)] = part
            device.copy(memory, staging, len(part), stream, offset=start)
            stream.synchronize()
    finally:
        staging.free()
    return memory


def out_of_memory(nbytes: int, free: int | None, gpu: str, remedy: str) -> OutOfMemory:
    """Return the error for an allocation of nbytes.  free: the bytes left, or None for pinned host memory."""
    if free is None:
        return OutOfMemory(f"pinned host memory: {_mib(nbytes)} asked for and not available; {remedy}")
    return OutOfMemory(f"{gpu}: {_mib(nbytes)} asked for, {_mib(free)} free; {remedy}")


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"

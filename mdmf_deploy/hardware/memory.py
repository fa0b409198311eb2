"""Host memory as arrays, arrays that others hold on a GPU, and what to say when there is no memory left."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import OutOfMemory, ShapeMismatch
from mdmf_deploy.hardware.device import LEGACY_STREAM, Device, Memory, Stream

_CHUNK = 1 << 24  # bytes of pinned memory through which larger arrays go


@dataclass(frozen=True, slots=True)
class DeviceView:
    """An array on the GPU, C-contiguous float32.  stream: cudaStream_t of whoever makes it; None if it is made."""

    pointer: int
    shape: tuple[int, ...]
    stream: int | None

    def images(self, start: int, count: int) -> DeviceView:
        """Some along the first axis."""
        stride = 4 * math.prod(self.shape[1:])
        return DeviceView(self.pointer + start * stride, (count, *self.shape[1:]), self.stream)


def is_on_device(array: object) -> bool:
    """Whether an array says where on a GPU it is (PyTorch, CuPy, pycuda, an engine's)."""
    return hasattr(array, "__cuda_array_interface__")


def device_view(array: Any) -> DeviceView:
    """What `__cuda_array_interface__` says (numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, version 3).

    Raises ShapeMismatch if it is not C-contiguous float32.
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
    # Before version 3 nobody says on which stream an array is made; most use the default one.
    stream = interface.get("stream") if interface["version"] >= 3 else LEGACY_STREAM
    if stream == 0:
        raise ShapeMismatch("signatures on the GPU: stream 0 is ambiguous; say 1 or 2 for the default stream")
    return DeviceView(int(interface["data"][0]), shape, stream)


def host_view(pointer: int, nbytes: int) -> NDArray[np.uint8]:
    """(nbytes,) of host memory that someone else owns and keeps."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))


def upload(device: Device, array: NDArray[Any], stream: Stream, remedy: str) -> Memory:
    """A copy of an array on the GPU, ready when this returns.  Raises OutOfMemory, with the remedy."""
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
    """The error for an allocation of nbytes; free: what is left, None for pinned host memory."""
    if free is None:
        return OutOfMemory(f"pinned host memory: {_mib(nbytes)} asked for and not to be had; {remedy}")
    return OutOfMemory(f"{gpu}: {_mib(nbytes)} asked for, {_mib(free)} free; {remedy}")


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"

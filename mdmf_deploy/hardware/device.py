"""The interface to a GPU: memory, copies, modules, launches and events, plus streams and graphs for the steady state.

Work given to a stream runs later, in the stream's order. Streams wait for each other only through events.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import OutOfMemory, RuntimeUnavailable, ShapeMismatch, install, version
from mdmf_deploy.hardware.gpu import Gpu, probe

# The default stream of every library in the process, as __cuda_array_interface__ numbers it.
LEGACY_STREAM = 1
# Larger arrays are uploaded through this many bytes of pinned memory.
_CHUNK = 1 << 24


class Memory(Protocol):
    """A block of memory on the GPU, or pinned on the host.

    pointer, nbytes: where it is and how large.
    host: (nbytes,) the same bytes as an array if this is pinned host memory, else empty.
    """

    pointer: int
    nbytes: int
    host: NDArray[np.uint8]

    def free(self) -> None:
        """Free the block at once. Wait first for any work that uses it. A second call does nothing."""
        ...


class Event(Protocol):
    """A point in a stream's order."""

    def record(self, stream: Stream) -> None:
        """Move the event behind everything the stream has been given so far."""
        ...

    def synchronize(self) -> None:
        """Wait until everything before the event has run."""
        ...

    def since(self, earlier: Event) -> float:
        """Return the milliseconds between two events that have both been reached."""
        ...


class Stream(Protocol):
    """A queue of work.  handle: its cudaStream_t."""

    handle: int

    def wait(self, event: Event) -> None:
        """Make all later work on this stream wait for the event. Returns at once."""
        ...

    def synchronize(self) -> None:
        """Wait until all work on this stream has run."""
        ...


class Graph(Protocol):
    """Work that was recorded once and can be launched many times."""

    def launch(self, stream: Stream) -> None: ...


class Module(Protocol):
    """Compiled code, loaded on the GPU."""

    def __getitem__(self, entry: str) -> Any:
        """Return the kernel of that name for `launch`. It may use as much shared memory as the GPU allows."""
        ...


class Device(Protocol):
    """One GPU of this process. Every method may be called from any thread.

    name: its key in DEVICES.
    """

    name: str
    gpu: Gpu

    def allocate(self, nbytes: int, remedy: str, *, pinned: bool = False) -> Memory:
        """Allocate uninitialised memory on the GPU, or pinned on the host, which kernels reach as well.

        Raises OutOfMemory with the bytes asked for, the bytes available, and the remedy: the setting to lower.
        """
        ...

    def copy(self, to: Memory, source: Memory, nbytes: int, stream: Stream, *, offset: int = 0) -> None:
        """Copy the first nbytes of `source` to `offset` bytes into `to`.

        At least one of the two is on the GPU, and the other may be pinned memory. The copy runs in the stream's order.
        Until then, free neither block and don't write to the source.
        """
        ...

    def module(self, source: Path, options: tuple[str, ...]) -> Module:
        """Compile CUDA C++ for this GPU, or load it from the cache. Raises CompilationFailed."""
        ...

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        block: int,
        shared: int,
        arguments: tuple[np.generic, ...],
        stream: Stream,
    ) -> None:
        """Run a kernel in the stream's order.

        shared: dynamic shared memory, in bytes.  arguments: NumPy scalars of the C types, with np.uintp for pointers.
        """
        ...

    def event(self) -> Event:
        """Return a new event, not recorded yet."""
        ...

    def stream(self, handle: int | None = None) -> Stream:
        """Return a new stream, independent of all others, or another library's stream by its cudaStream_t.

        A stream given by its handle stays the other library's.
        """
        ...

    def graph(self, work: Callable[[], None], stream: Stream) -> Graph:
        """Record the copies and launches that `work` gives to the stream, with their present arguments. Run nothing."""
        ...


class Adapter(NamedTuple):
    """How a device library is loaded.

    module, class_name: the Device, built as class_name().
    extra: the extra that installs the library.
    oldest: the oldest version whose API the module knows.
    """

    module: str
    class_name: str
    extra: str
    oldest: tuple[int, int] = (0, 0)


# The key is the library's distribution. "auto" means the first one.
DEVICES: dict[str, Adapter] = {
    # Versions before 1.0 call some options by other names.
    "cuda-core": Adapter("mdmf_deploy.hardware.cuda_core", "CudaCoreDevice", "gpu", (1, 0)),
    "pycuda": Adapter("mdmf_deploy.hardware.pycuda_device", "PycudaDevice", "pycuda"),
}


def open_device(name: str = "auto") -> Device:
    """Open the first GPU through the library `name`. "auto" is cuda-core.

    Raises RuntimeUnavailable if there is no GPU, its driver is too old, or the library is unknown, not installed or too
    old.
    """
    if name == "auto":
        name = next(iter(DEVICES))
    if name not in DEVICES:
        raise RuntimeUnavailable(f"device library {name!r} is not known; choose auto or one of {', '.join(DEVICES)}")
    # Probe before loading any library. Without a driver, the libraries fail with many lines.
    probe()
    adapter = DEVICES[name]
    if reason := outdated(name):
        raise RuntimeUnavailable(f"{reason}; run: {install(adapter.extra)}")
    try:
        device: Device = getattr(importlib.import_module(adapter.module), adapter.class_name)()
    except ImportError as error:
        raise RuntimeUnavailable(
            f"device library {name!r} needs {error.name}; run: {install(adapter.extra)}"
        ) from error
    return device


def outdated(name: str) -> str | None:
    """Return why the installed version of a device library is too old, or None. A missing library is not too old."""
    found, oldest = version(name), DEVICES[name].oldest
    if found is None or tuple(int(part) for part in re.findall(r"\d+", found)[:2]) >= oldest:
        return None
    return f"{name} {found} is too old, expected {oldest[0]}.{oldest[1]} or newer"


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

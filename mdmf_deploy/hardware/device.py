"""GPUs: what is asked of one, in five functions, and who carries it out.

allocate, copy, module, launch, event; and, because the steady state needs them, streams and graphs.  Everything that is
given to a stream runs later, in the stream's order; streams wait for each other only through events.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.hardware.gpu import Gpu

__all__ = ["DEVICES", "Device", "Event", "Gpu", "Graph", "Memory", "Module", "Stream", "open_device"]

# The default stream of every library in the process, as __cuda_array_interface__ numbers it.
LEGACY_STREAM = 1


class Memory(Protocol):
    """pointer, nbytes: where it is.  host: (nbytes,) the same bytes, if it is pinned host memory; else empty."""

    pointer: int
    nbytes: int
    host: NDArray[np.uint8]

    def free(self) -> None:
        """Give it back at once; whoever still works on it must have been waited for.  Twice does nothing."""
        ...


class Event(Protocol):
    """A place in a stream's order."""

    def record(self, stream: Stream) -> None:
        """Be at the place after all that the stream was given so far."""
        ...

    def synchronize(self) -> None:
        """Return once everything before it has run."""
        ...

    def since(self, earlier: Event) -> float:
        """Milliseconds between two events that have both been reached."""
        ...


class Stream(Protocol):
    """A queue of work.  handle: its cudaStream_t."""

    handle: int

    def wait(self, event: Event) -> None:
        """Let all that comes later on this stream wait for the event; returns at once."""
        ...

    def synchronize(self) -> None:
        """Return once everything has run."""
        ...


class Graph(Protocol):
    """Work that was recorded once, to be launched many times."""

    def launch(self, stream: Stream) -> None: ...


class Module(Protocol):
    """Compiled code, loaded."""

    def __getitem__(self, entry: str) -> Any:
        """The kernel of that name, for `launch`; it may be given as much shared memory as the GPU allows."""
        ...


class Device(Protocol):
    """One GPU, of this process.  name: as in the table below.  Any thread may call any of it."""

    name: str
    gpu: Gpu

    def allocate(self, nbytes: int, remedy: str, *, pinned: bool = False) -> Memory:
        """Memory on the GPU, or pinned on the host, not cleared.

        Raises OutOfMemory, which says how much was asked for, how much there is, and the remedy: what to lower.
        """
        ...

    def copy(self, to: Memory, source: Memory, nbytes: int, stream: Stream, *, offset: int = 0) -> None:
        """The first nbytes of source, to `offset` bytes into `to`; within the GPU, or between it and pinned memory.

        In the stream's order: until it has run, neither may be freed, nor source written to.
        """
        ...

    def module(self, source: Path, options: tuple[str, ...]) -> Module:
        """CUDA C++ compiled for this GPU, or what the cache holds of it.  Raises CompilationFailed."""
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
        """Run a kernel in the stream's order; arguments are NumPy scalars of the C types, pointers np.uintp."""
        ...

    def event(self) -> Event:
        """A new one, recorded nowhere yet."""
        ...

    def stream(self, handle: int | None = None) -> Stream:
        """A new one, ordered with no other; or another library's, by its cudaStream_t, which stays the library's."""
        ...

    def graph(self, work: Callable[[], None], stream: Stream) -> Graph:
        """Record what `work` gives to the stream: copies and launches alone, with their arguments as they are now."""
        ...


# name -> module, class, extra that installs it.  Each class is built as Class().
DEVICES: dict[str, tuple[str, str, str]] = {
    "cuda-core": ("mdmf_deploy.hardware.cuda_core", "CudaCoreDevice", "gpu"),
    "pycuda": ("mdmf_deploy.hardware.pycuda_device", "PycudaDevice", "pycuda"),
}


def open_device(name: str = "auto") -> Device:
    """The first GPU, through the library `name`; "auto" is cuda-core.

    Raises RuntimeUnavailable if there is no GPU, its driver is too old, or the library is unknown or not installed.
    """
    if name == "auto":
        name = next(iter(DEVICES))
    if name not in DEVICES:
        raise RuntimeUnavailable(f"device library {name!r} is not known; choose auto or one of {', '.join(DEVICES)}")
    from mdmf_deploy.hardware.gpu import probe

    # Before any library is touched, which would say the same in many lines.
    probe()
    module, class_name, extra = DEVICES[name]
    try:
        device: Device = getattr(importlib.import_module(module), class_name)()
    except ImportError as error:
        raise RuntimeUnavailable(
            f"device library {name!r} needs {error.name}; run: pip install 'mdmf-deploy[{extra}]'"
        ) from error
    return device

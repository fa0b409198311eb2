"""A GPU through cuda-core and NVRTC, both installed as wheels (extra: gpu)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cuda import core
from cuda.bindings import driver
from numpy.typing import NDArray

from mdmf_deploy.hardware.cubin import Nvrtc, cached_cubin
from mdmf_deploy.hardware.device import host_view, out_of_memory
from mdmf_deploy.hardware.gpu import probe

_SUCCESS = driver.CUresult.CUDA_SUCCESS
_FULL = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
_DYNAMIC_SHARED = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_MOST_SHARED = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN


class CudaCoreDevice:
    """The first GPU, in its primary context, which PyTorch, CuPy and TensorRT share.

    Raises RuntimeUnavailable if there is no GPU, or if its driver is older than the compiler.
    """

    name = "cuda-core"

    def __init__(self) -> None:
        self._compiler = Nvrtc()
        # A cubin runs only on drivers that support its compiler's major version.
        self.gpu = probe((self._compiler.cuda[0], 0))
        self._current()

    def allocate(self, nbytes: int, remedy: str, *, pinned: bool = False) -> _Memory:
        self._current()
        size = max(nbytes, 1)
        code, pointer = driver.cuMemAllocHost(size) if pinned else driver.cuMemAlloc(size)
        if code == _FULL:
            free = None if pinned else _call(driver.cuMemGetInfo)[0]
            raise out_of_memory(nbytes, free, self.gpu.name, remedy)
        if code != _SUCCESS:
            raise RuntimeError(f"cuMemAlloc of {nbytes} bytes: {code.name}")
        return _Memory(int(pointer), nbytes, pinned, self._current)

    def copy(self, to: _Memory, source: _Memory, nbytes: int, stream: _Stream, *, offset: int = 0) -> None:
        self._current()
        _call(driver.cuMemcpyAsync, to.pointer + offset, source.pointer, nbytes, stream.handle)

    def module(self, source: Path, options: tuple[str, ...]) -> _Module:
        self._current()
        version = "driver {}.{}".format(*self.gpu.driver)
        cubin = cached_cubin(source, options, self.gpu.sm, version, self._compiler)
        try:
            return _Module(cubin)
        except Exception:  # cuda-core's errors share no public base
            return _Module(cached_cubin(source, options, self.gpu.sm, version, self._compiler, fresh=True))

    def launch(
        self,
        kernel: core.Kernel,
        grid: tuple[int, int, int],
        block: int,
        shared: int,
        arguments: tuple[np.generic, ...],
        stream: _Stream,
    ) -> None:
        self._current()
        config = core.LaunchConfig(grid=grid, block=block, shmem_size=shared)
        core.launch(stream.core, config, kernel, *arguments)

    def event(self) -> _Event:
        # Block instead of spinning: the decode threads need the CPU.
        options = core.EventOptions(timing_enabled=True, blocking_sync=True)
        return _Event(self._current().create_event(options), self._current)

    def stream(self, handle: int | None = None) -> _Stream:
        device = self._current()
        stream = device.create_stream() if handle is None else core.Stream.from_handle(handle)
        return _Stream(stream, self._current)

    def graph(self, work: Callable[[], None], stream: _Stream) -> _Graph:
        self._current()
        # Relaxed mode, because the garbage collector may free memory meanwhile, in any thread.
        builder = stream.core.create_graph_builder().begin_building("relaxed")
        try:
            work()
        finally:
            builder.end_building()
        return _Graph(builder.complete(), self._current)

    def _current(self) -> core.Device:
        """Make the primary context current in this thread, where other code may have changed it."""
        device = core.Device(0)
        device.set_current()
        return device


class _Memory:
    def __init__(self, pointer: int, nbytes: int, pinned: bool, current: Callable[[], object]) -> None:
        self.pointer, self.nbytes = pointer, nbytes
        self.host: NDArray[np.uint8] = host_view(pointer, nbytes if pinned else 0)
        # Frees the memory also if nobody calls it. A second call does nothing.
        self.free = weakref.finalize(self, _free, pointer, pinned, current)
        self.free.atexit = False


class _Stream:
    def __init__(self, stream: core.Stream, current: Callable[[], object]) -> None:
        self.core, self._current = stream, current
        self.handle = int(stream.handle)

    def wait(self, event: _Event) -> None:
        self._current()
        self.core.wait(event.core)

    def synchronize(self) -> None:
        self._current()
        self.core.sync()


class _Event:
    def __init__(self, event: core.Event, current: Callable[[], object]) -> None:
        self.core, self._current = event, current

    def record(self, stream: _Stream) -> None:
        self._current()
        stream.core.record(self.core)

    def synchronize(self) -> None:
        self._current()
        self.core.sync()

    def since(self, earlier: _Event) -> float:
        self._current()
        return float(self.core - earlier.core)


class _Graph:
    def __init__(self, graph: Any, current: Callable[[], object]) -> None:
        self._graph, self._current = graph, current

    def launch(self, stream: _Stream) -> None:
        self._current()
        self._graph.launch(stream.core)


class _Module:
    def __init__(self, cubin: bytes) -> None:
        self._code = core.ObjectCode.from_cubin(cubin)
        # Modules load lazily. Touch the handle now, so that an incompatible driver fails here.
        self._code.handle  # noqa: B018

    def __getitem__(self, entry: str) -> core.Kernel:
        kernel = self._code.get_kernel(entry)
        (device,) = _call(driver.cuCtxGetDevice)
        (most,) = _call(driver.cuDeviceGetAttribute, _MOST_SHARED, device)
        own = kernel.attributes.shared_size_bytes
        _call(driver.cuKernelSetAttribute, _DYNAMIC_SHARED, most - own, kernel.handle, device)
        return kernel


def _free(pointer: int, pinned: bool, current: Callable[[], object]) -> None:
    current()
    (driver.cuMemFreeHost if pinned else driver.cuMemFree)(pointer)


def _call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> tuple[Any, ...]:
    code, *values = function(*arguments)
    if code != _SUCCESS:
        raise RuntimeError(f"{function.__name__}{arguments}: {code.name}")
    return tuple(values)

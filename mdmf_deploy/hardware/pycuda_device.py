"""A GPU through pycuda, for users who name it (extra: pycuda). Compiles with the CUDA toolkit's nvcc.

pycuda has no graphs, so a graph repeats its launches each time. It cannot wait for another library's stream on the GPU,
so the host waits.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pycuda.compiler
import pycuda.driver as cuda

from mdmf_deploy.hardware.cubin import ARCHITECTURE, cached_cubin, refused
from mdmf_deploy.hardware.device import host_view, out_of_memory
from mdmf_deploy.hardware.gpu import driver, probe

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_ATTRIBUTE = cuda.function_attribute


class Nvcc:
    """The CUDA toolkit's compiler. It must be on the PATH."""

    def __init__(self) -> None:
        self.version = str(pycuda.compiler.get_nvcc_version("nvcc")).strip().splitlines()[-1]

    def __call__(self, source: Path, options: tuple[str, ...], sm: int) -> bytes:
        dialect = next((option for option in options if option.startswith(ARCHITECTURE)), f"{ARCHITECTURE}sm_{sm}")
        try:
            cubin = pycuda.compiler.compile(
                source.read_text(),
                options=[option for option in options if option != dialect],
                no_extern_c=True,
                arch=dialect.removeprefix(ARCHITECTURE),
                cache_dir=False,
                include_dirs=[str(source.parent)],
            )
        except cuda.CompileError as error:
            raise refused(source, "nvcc", sm, str(error.stderr)) from error
        return bytes(cubin)


class PycudaDevice:
    """The first GPU, in its primary context. Raises RuntimeUnavailable if there is no GPU."""

    name = "pycuda"

    def __init__(self) -> None:
        self.gpu = probe()
        cuda.init()
        self._context = cuda.Device(0).retain_primary_context()
        self._compiler = Nvcc()

    def allocate(self, nbytes: int, remedy: str, *, pinned: bool = False) -> _Memory:
        with self._current():
            try:
                return _Memory(self._current, max(nbytes, 1), pinned)
            except cuda.MemoryError as error:
                free = None if pinned else cuda.mem_get_info()[0]
                raise out_of_memory(nbytes, free, self.gpu.name, remedy) from error

    def copy(self, to: _Memory, source: _Memory, nbytes: int, stream: _Stream, *, offset: int = 0) -> None:
        with self._current():
            if source.host.size:
                cuda.memcpy_htod_async(to.pointer + offset, source.host[:nbytes], stream.pycuda)
            elif to.host.size:
                cuda.memcpy_dtoh_async(to.host[offset : offset + nbytes], source.pointer, stream.pycuda)
            else:
                cuda.memcpy_dtod_async(to.pointer + offset, source.pointer, nbytes, stream.pycuda)

    def module(self, source: Path, options: tuple[str, ...]) -> _Module:
        arguments = source, options, self.gpu.sm, "driver {}.{}".format(*self.gpu.driver), self._compiler
        with self._current():
            try:
                return _Module(cached_cubin(*arguments), self._current)
            except cuda.Error:
                return _Module(cached_cubin(*arguments, fresh=True), self._current)

    def launch(
        self,
        kernel: _Kernel,
        grid: tuple[int, int, int],
        block: int,
        shared: int,
        arguments: tuple[np.generic, ...],
        stream: _Stream,
    ) -> None:
        with self._current():
            kernel.pycuda(*arguments, grid=grid, block=(block, 1, 1), shared=shared, stream=stream.pycuda)

    def event(self) -> _Event:
        with self._current():
            return _Event(self._current)

    def stream(self, handle: int | None = None) -> _Stream | _ForeignStream:
        with self._current():
            return _Stream(self._current) if handle is None else _ForeignStream(self._current, handle)

    def graph(self, work: Callable[[], None], stream: _Stream) -> _Replay:
        return _Replay(work)

    @contextmanager
    def _current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            cuda.Context.pop()


# Makes the context current in this thread for the length of a `with` block.
Current = Callable[[], Any]


class _Held:
    """A pycuda object, which must be both created and destroyed while the context is current."""

    def __init__(self, current: Current, made: Any) -> None:
        self._current = current
        self._box = [made]
        self.free = weakref.finalize(self, _drop, current, self._box)

    @property
    def pycuda(self) -> Any:
        return self._box[0]


def _drop(current: Current, box: list[Any]) -> None:
    with current():
        box.clear()


class _Memory(_Held):
    def __init__(self, current: Current, nbytes: int, pinned: bool) -> None:
        self.nbytes = nbytes
        # The pycuda array owns pinned memory. `host` is a view that does not keep it alive.
        made = cuda.pagelocked_empty(nbytes, np.uint8) if pinned else cuda.mem_alloc(nbytes)
        self.pointer = int(made.ctypes.data) if pinned else int(made)
        self.host = host_view(self.pointer, nbytes if pinned else 0)
        super().__init__(current, made)


class _Stream(_Held):
    def __init__(self, current: Current) -> None:
        super().__init__(current, cuda.Stream(flags=_NON_BLOCKING))
        self.handle = int(self.pycuda.handle)

    def wait(self, event: _Event) -> None:
        with self._current():
            self.pycuda.wait_for_event(event.pycuda)

    def synchronize(self) -> None:
        with self._current():
            self.pycuda.synchronize()


class _ForeignStream:
    pycuda = None

    def __init__(self, current: Current, handle: int) -> None:
        self._current, self.handle = current, handle

    def wait(self, event: _Event) -> None:
        event.synchronize()

    def synchronize(self) -> None:
        with self._current():
            driver()("cuStreamSynchronize", ctypes.c_void_p(self.handle))


class _Event(_Held):
    def __init__(self, current: Current) -> None:
        super().__init__(current, cuda.Event(cuda.event_flags.BLOCKING_SYNC))

    def record(self, stream: _Stream | _ForeignStream) -> None:
        if stream.pycuda is None:
            stream.synchronize()
        with self._current():
            self.pycuda.record(stream.pycuda)

    def synchronize(self) -> None:
        with self._current():
            self.pycuda.synchronize()

    def since(self, earlier: _Event) -> float:
        with self._current():
            return float(self.pycuda.time_since(earlier.pycuda))


class _Replay:
    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def launch(self, stream: _Stream) -> None:
        self._work()


class _Module(_Held):
    def __init__(self, cubin: bytes, current: Current) -> None:
        super().__init__(current, cuda.module_from_buffer(cubin))

    def __getitem__(self, entry: str) -> Any:
        with self._current():
            function = self.pycuda.get_function(entry)
            most = cuda.Context.get_device().get_attribute(cuda.device_attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            own = function.get_attribute(_ATTRIBUTE.SHARED_SIZE_BYTES)
            function.set_attribute(_ATTRIBUTE.MAX_DYNAMIC_SHARED_SIZE_BYTES, most - own)
            return _Kernel(self._current, function, self)


class _Kernel(_Held):
    def __init__(self, current: Current, function: Any, module: _Module) -> None:
        super().__init__(current, function)
        self._module = module

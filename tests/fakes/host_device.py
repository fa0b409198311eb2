"""A Device without a GPU, for tests. Kernels run on the host, and nothing runs before somebody waits for it.

A stream is a list of the work it was given. A synchronisation runs only as much of it as it waits for, and as much of
other streams as that depends on through events. So memory that is reused too soon, or read without waiting, is wrong
every time instead of once in a while. New and freed memory is full of NaN.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mdmf_deploy.hardware.device import Gpu, host_view, out_of_memory

Entry = Callable[..., None]
"""Called with grid, block, shared and the arguments as NumPy scalars."""

# The host build of a kernel runs one block at a time in the whole process.
_ONE_AT_A_TIME = threading.RLock()


class HostMemory:
    def __init__(self, nbytes: int, pinned: bool) -> None:
        # Aligned to 256 bytes, as CUDA does.
        self._bytes = np.full(nbytes + 256, 0xFF, np.uint8)
        start = -self._bytes.ctypes.data % 256
        self._whole = self._bytes[start : start + nbytes]
        self.pointer, self.nbytes = int(self._whole.ctypes.data), nbytes
        self.host = self._whole if pinned else self._whole[:0]
        self.freed = False

    def free(self) -> None:
        self._whole[:] = 0xFF
        self.freed = True


class HostStream:
    def __init__(self, device: HostDevice, handle: int) -> None:
        self._device, self.handle = device, handle
        self.given: list[Callable[[], None]] = []
        self.done = 0
        self.recording: list[Callable[[], None]] | None = None

    def give(self, work: Callable[[], None]) -> None:
        (self.given if self.recording is None else self.recording).append(work)

    def wait(self, event: HostEvent) -> None:
        self._refuse_recording()
        stream, place = event.at()
        self.given.append(lambda: stream.run(place))

    def synchronize(self) -> None:
        self._refuse_recording()
        self.run(len(self.given))

    def run(self, until: int) -> None:
        with _ONE_AT_A_TIME:
            while self.done < until:
                self.done += 1
                self.given[self.done - 1]()

    def _refuse_recording(self) -> None:
        if self.recording is not None:
            raise RuntimeError("not while a graph is recorded")


class HostEvent:
    def __init__(self) -> None:
        self._at: tuple[HostStream, int] | None = None

    def at(self) -> tuple[HostStream, int]:
        if self._at is None:
            raise RuntimeError("this event was never recorded")
        return self._at

    def record(self, stream: HostStream) -> None:
        self._at = stream, len(stream.given)

    def synchronize(self) -> None:
        stream, place = self.at()
        stream.run(place)

    def since(self, earlier: HostEvent) -> float:
        for stream, place in (self.at(), earlier.at()):
            if stream.done < place:
                raise RuntimeError("an event was not reached yet")
        return 0.25


class HostGraph:
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self._work = work
        self.launches = 0

    def launch(self, stream: HostStream) -> None:
        self.launches += 1
        for work in self._work:
            stream.give(work)


class HostDevice:
    """A fake GPU.

    build: (source, options) -> entry points by name.
    sm: its compute capability, 89 for 8.9.
    memory: its size in bytes.
    """

    name = "host"

    def __init__(
        self, build: Callable[[Path, tuple[str, ...]], Mapping[str, Entry]], sm: int = 89, memory: int = 1 << 30
    ) -> None:
        self._build = build
        self.gpu = Gpu("a pretended GPU", divmod(sm, 10), memory, (13, 0), 4)
        self.memories: list[HostMemory] = []
        self.streams: dict[int, HostStream] = {}
        self._graphs: list[weakref.ref[HostGraph]] = []
        self.launched: list[str] = []
        self.to_host = 0  # bytes copied so far
        self._handles = itertools.count(100)

    @property
    def allocated(self) -> int:
        return sum(memory.nbytes for memory in self.memories if not memory.freed)

    @property
    def graphs(self) -> list[HostGraph]:
        """Graphs that somebody still holds, oldest first."""
        return [graph for reference in self._graphs if (graph := reference()) is not None]

    def allocate(self, nbytes: int, remedy: str, *, pinned: bool = False) -> HostMemory:
        self._refuse_recording()
        free = self.gpu.memory - self.allocated
        if nbytes > free:
            raise out_of_memory(nbytes, None if pinned else free, self.gpu.name, remedy)
        self.memories.append(HostMemory(nbytes, pinned))
        return self.memories[-1]

    def copy(self, to: HostMemory, source: HostMemory, nbytes: int, stream: HostStream, *, offset: int = 0) -> None:
        if offset + nbytes > to.nbytes or nbytes > source.nbytes:
            raise ValueError("a copy past the end")

        def run() -> None:
            if to.freed or source.freed:
                raise RuntimeError("a copy of freed memory")
            host_view(to.pointer + offset, nbytes)[:] = host_view(source.pointer, nbytes)
            self.to_host += nbytes if to.host.size else 0

        stream.give(run)

    def module(self, source: Path, options: tuple[str, ...]) -> Mapping[str, tuple[str, Entry]]:
        return {name: (name, entry) for name, entry in self._build(source, options).items()}

    def launch(
        self,
        kernel: tuple[str, Entry],
        grid: tuple[int, int, int],
        block: int,
        shared: int,
        arguments: tuple[np.generic, ...],
        stream: HostStream,
    ) -> None:
        name, entry = kernel
        for argument in arguments:
            if isinstance(argument, np.uintp) and not self._known(int(argument)):
                raise ValueError(f"{name} is given a pointer to no memory of this device")

        def run() -> None:
            self.launched.append(name)
            entry(grid, block, shared, *arguments)

        stream.give(run)

    def event(self) -> HostEvent:
        return HostEvent()

    def stream(self, handle: int | None = None) -> HostStream:
        handle = next(self._handles) if handle is None else handle
        return self.streams.setdefault(handle, HostStream(self, handle))

    def graph(self, work: Callable[[], None], stream: HostStream) -> HostGraph:
        stream.recording = recorded = []
        try:
            work()
        finally:
            stream.recording = None
        graph = HostGraph(recorded)
        self._graphs.append(weakref.ref(graph))
        return graph

    def _known(self, pointer: int) -> bool:
        return any(m.pointer <= pointer < m.pointer + max(m.nbytes, 1) and not m.freed for m in self.memories)

    def _refuse_recording(self) -> None:
        if any(stream.recording is not None for stream in self.streams.values()):
            raise RuntimeError("no allocation while a graph is recorded")

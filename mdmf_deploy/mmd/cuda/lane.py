"""One batch's way through the GPU: a stream with memory of its own, and the graph of what is launched every time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.hardware.device import Device, Graph, Memory
from mdmf_deploy.hardware.memory import DeviceView, upload
from mdmf_deploy.mmd.cuda.kernels import Kernel, Launch, Launches, prepare_bank

_SMALLER_BATCH = "lower --batch-size"
_SMALLER_BANK = "compress the bank (`mdmf bank compress`), or close what else runs on this GPU"
# Shapes whose graphs are kept; a run has two, its batch size and what is left over at the end.
_GRAPHS = 8
_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}


class PointsOnDevice:
    """A bank's side, prepared and uploaded, with the kernels compiled for it.

    Raises OutOfMemory, CompilationFailed.
    """

    def __init__(self, device: Device, bank: Bank, kernel: Kernel) -> None:
        self.bank, self.kernel = bank, kernel
        prepared = prepare_bank(bank, kernel)
        self.rows = len(prepared.operands)
        self.unit, self.scale, self.self_term = prepared.unit, prepared.scale, prepared.self_term
        module = device.module(kernel.source, kernel.options(device.gpu.sm))
        self.entries = {name: module[f"mdmf_{name}"] for name in ("prepare", "cross", "within", "finish")}
        self._multiprocessors = device.gpu.multiprocessors
        self._launches: dict[tuple[int, int], Launches] = {}
        stream = device.stream()
        self._held: list[Memory] = []
        try:
            for array in (prepared.operands, prepared.half_norms, prepared.weights, prepared.centre):
                self._held.append(upload(device, array, stream, _SMALLER_BANK))
        except BaseException:
            self.free()
            raise
        self.operands, self.half_norms, self.weights, self.centre = self._held

    def launches(self, images: int, patches: int) -> Launches:
        """For a batch of that shape; found once, as it takes a while."""
        shape = images, patches
        if shape not in self._launches:
            self._launches[shape] = self.kernel.launches(*shape, self.rows, self._multiprocessors)
        return self._launches[shape]

    def free(self) -> None:
        for memory in self._held:
            memory.free()


class Part:
    """The scores of one batch, from when its lane has started until whoever reads them."""

    def __init__(self, read: Callable[[], tuple[NDArray[np.float64], NDArray[np.float64], float]]) -> None:
        self._read, self._lock = read, threading.Lock()
        self._taken: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self.milliseconds = 0.0

    def take(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """mmd2 (B,), contributions (B, N): the reader's own.  Waits for the GPU."""
        with self._lock:
            if self._taken is None:
                mmd2, contributions, self.milliseconds = self._read()
                self._taken = mmd2, contributions
            return self._taken


class Lane:
    """Takes one batch at a time; the next may start as soon as the last has left, read or not."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream = device.stream()
        self._begun, self._consumed, self._done, self._made = (device.event() for _ in range(4))
        self._part: Part | None = None
        self._memory: dict[str, Memory] = {}
        self._seen: set[tuple[int, int]] = set()
        self._graphs: dict[tuple[int, int], Graph] = {}

    def start(self, signatures: NDArray[np.float32] | DeviceView, points: PointsOnDevice) -> Part:
        """(B, N, d), B >= 1; an array on the host is read before this returns.  Raises OutOfMemory."""
        if self._part is not None:
            # Its results lie where this batch's will.
            self._part.take()
            self._part = None
        images, patches, width = signatures.shape
        rows = images * patches
        launches = points.launches(images, patches)
        operands = self._room("operands", rows * width * _BYTES[points.kernel.operand])
        half_norms, within = self._room("half_norms", 4 * rows), self._room("within", 4 * rows)
        partial_sums = self._room("partial", 4 * rows * launches.slices)
        # Contributions first, then the images' scores.
        out = self._room("out", 8 * (rows + images))
        results = self._room("results", 8 * (rows + images), pinned=True)
        source = self._source(signatures)

        def rest() -> None:
            run = partial(self._launch, points)
            x, bank = (operands, half_norms), (points.operands, points.half_norms, points.weights)
            run(launches.cross, *x, *bank, rows, points.rows, launches.slices, partial_sums)
            run(launches.within, *x, images, patches, within)
            scalars = np.float32(points.unit), np.float64(points.self_term)
            mmd2 = np.uintp(out.pointer + 8 * rows)
            run(launches.finish, partial_sums, within, launches.slices, images, patches, *scalars, out, mmd2)
            self._device.copy(results, out, 8 * (rows + images), self._stream)

        scale = np.float32(points.scale)
        self._launch(points, launches.prepare, source, points.centre, scale, rows, operands, half_norms)
        if isinstance(signatures, DeviceView) and signatures.stream is not None:
            # Nothing after prepare looks at them, so their maker may go on with the next.
            self._consumed.record(self._stream)
            self._device.stream(signatures.stream).wait(self._consumed)
        self._steady((images, patches), rest)
        self._done.record(self._stream)

        def read() -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
            self._done.synchronize()
            values = results.host[: 8 * (rows + images)].view(np.float64).copy()
            return values[rows:], values[:rows].reshape(images, patches), self._done.since(self._begun)

        self._part = Part(read)
        return self._part

    def clear(self) -> None:
        """Wait for what runs, and free everything."""
        if self._part is not None:
            self._part.take()
            self._part = None
        self._forget()
        for memory in self._memory.values():
            memory.free()
        self._memory.clear()

    def _source(self, signatures: NDArray[np.float32] | DeviceView) -> np.uintp:
        """Where on the GPU they are, or will be, in the stream's order."""
        if isinstance(signatures, DeviceView):
            if signatures.stream is not None:
                self._made.record(self._device.stream(signatures.stream))
                self._stream.wait(self._made)
            self._begun.record(self._stream)
            return np.uintp(signatures.pointer)
        nbytes = 4 * signatures.size
        staging = self._room("staging", nbytes, pinned=True)
        x = self._room("x", nbytes)
        staging.host[:nbytes].view(np.float32).reshape(signatures.shape)[...] = signatures
        self._begun.record(self._stream)
        self._device.copy(x, staging, nbytes, self._stream)
        return np.uintp(x.pointer)

    def _launch(self, points: PointsOnDevice, launch: Launch, *arguments: Memory | np.generic | int) -> None:
        scalars = tuple(
            argument
            if isinstance(argument, np.generic)
            else np.int32(argument)
            if isinstance(argument, int)
            else np.uintp(argument.pointer)
            for argument in arguments
        )
        kernel = points.entries[launch.entry.removeprefix("mdmf_")]
        self._device.launch(kernel, launch.grid, launch.block, launch.shared, scalars, self._stream)

    def _steady(self, shape: tuple[int, int], work: Callable[[], None]) -> None:
        """Do the work; as a graph from the second time on that a shape comes: most that come once do not again."""
        if shape not in self._seen:
            self._seen.add(shape)
            work()
            return
        if shape not in self._graphs:
            if len(self._graphs) == _GRAPHS:
                self._forget()
            self._graphs[shape] = self._device.graph(work, self._stream)
        self._graphs[shape].launch(self._stream)

    def _room(self, name: str, nbytes: int, *, pinned: bool = False) -> Memory:
        """At least so many bytes, the same every time until more are needed; the lane's last batch has left them."""
        held = self._memory.get(name)
        if held is None or held.nbytes < nbytes:
            # Graphs hold addresses.
            self._forget()
            if held is not None:
                self._memory.pop(name).free()
            held = self._memory[name] = self._device.allocate(nbytes, _SMALLER_BATCH, pinned=pinned)
        return held

    def _forget(self) -> None:
        self._graphs.clear()
        self._seen.clear()

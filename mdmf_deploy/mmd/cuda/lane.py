"""One batch at a time on one stream of a GPU: its memory, its launches, and a graph for each batch shape.

reduction.py gives batches to two lanes in turn. kernels.py says with which grid each kernel is launched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.hardware.device import Device, DeviceView, Graph, Memory, Stream, upload
from mdmf_deploy.mmd.cuda.kernels import Kernel, Launch, Launches, prepare_bank

# Graphs kept per lane, one for each batch shape. A run has two shapes: the batch size and the remainder at the end.
MAX_GRAPHS = 8
_SMALLER_BATCH = "lower --batch-size"
_SMALLER_BANK = "compress the bank (`mdmf bank compress`), or close what else runs on this GPU"


class UploadedBank:
    """A bank prepared for a kernel and uploaded, with the kernel compiled for this GPU.

    Raises OutOfMemory, CompilationFailed.
    """

    def __init__(self, device: Device, bank: Bank, kernel: Kernel) -> None:
        self.bank, self.kernel = bank, kernel
        prepared = prepare_bank(bank, kernel)
        self.rows = len(prepared.operands)
        self.unit, self.scale, self.self_term = prepared.unit, prepared.scale, prepared.self_term
        module = device.module(kernel.source, kernel.options(device.gpu.sm))
        self.entries = {name: module[name] for name in ("mdmf_prepare", "mdmf_cross", "mdmf_finish")}
        self._multiprocessors = device.gpu.multiprocessors
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
        """Return the launches for a batch of this shape."""
        return self.kernel.launches(images, patches, self.rows, self._multiprocessors)

    def free(self) -> None:
        for memory in self._held:
            memory.free()


class BatchScores:
    """The scores of one batch in a lane, until they are read."""

    def __init__(self, read: Callable[[], tuple[NDArray[np.float64], NDArray[np.float64], float]]) -> None:
        self._read, self._lock = read, threading.Lock()
        self._taken: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self.milliseconds = 0.0

    def take(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Wait for the GPU and return mmd2 (B,) and contributions (B, N), copies that the reader owns."""
        with self._lock:
            if self._taken is None:
                mmd2, contributions, self.milliseconds = self._read()
                self._taken = mmd2, contributions
            return self._taken


@dataclass(slots=True)
class BatchWork:
    """The work of one batch shape with its arguments. It lasts until the lane's memory moves.

    staging: (B, N, d), where host signatures are read, or None for signatures on the GPU.
    prepare: launch mdmf_prepare, given the address of the signatures.
    rest: all work whose arguments are the same every time.
    results: (B N + B,), contributions first.
    graph: of `rest`, once this shape came for the second time.
    """

    staging: NDArray[np.float32] | None
    prepare: Callable[[int], None]
    rest: Callable[[], None]
    results: NDArray[np.float64]
    seen: bool = False
    graph: Graph | None = None


class Lane:
    """A stream with memory of its own, for one batch at a time.

    The next batch may start once the last one has finished on the GPU, whether its scores were read or not.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream = device.stream()
        self._begun, self._consumed, self._done, self._made = (device.event() for _ in range(4))
        self._producer: Stream | None = None
        self._batch: BatchScores | None = None
        self._memory: dict[str, Memory] = {}
        self._work: dict[tuple[int, int, bool], BatchWork] = {}

    def start(self, signatures: NDArray[np.float32] | DeviceView, bank: UploadedBank) -> BatchScores:
        """Start scoring (B, N, d) signatures, B >= 1. A host array has been read when this returns.

        Raises OutOfMemory.
        """
        if self._batch is not None:
            # Read the last batch's results: this batch's will be written to the same place.
            self._batch.take()
            self._batch = None
        work = self._work_for(signatures, bank)
        if isinstance(signatures, DeviceView):
            self._prepare(signatures, work)
        else:
            assert work.staging is not None
            work.staging[...] = signatures
            self._begun.record(self._stream)
        self._repeat(work)
        self._done.record(self._stream)
        images, patches, _ = signatures.shape

        def read() -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
            self._done.synchronize()
            values = work.results.copy()
            rows = images * patches
            return values[rows:], values[:rows].reshape(images, patches), self._done.since(self._begun)

        self._batch = BatchScores(read)
        return self._batch

    def clear(self) -> None:
        """Wait for running work and free everything."""
        if self._batch is not None:
            self._batch.take()
            self._batch = None
        self._work.clear()
        for memory in self._memory.values():
            memory.free()
        self._memory.clear()

    def _prepare(self, signatures: DeviceView, work: BatchWork) -> None:
        """Prepare signatures where they are, once they have been written."""
        producer = self._stream_of(signatures)
        if producer is not None:
            self._made.record(producer)
            self._stream.wait(self._made)
        self._begun.record(self._stream)
        work.prepare(signatures.pointer)
        if producer is not None:
            # Nothing else reads the signatures, so their producer may overwrite them from here on.
            self._consumed.record(self._stream)
            producer.wait(self._consumed)

    def _stream_of(self, signatures: DeviceView) -> Stream | None:
        """Return the stream on which the signatures are being written. It is usually the last one's."""
        if signatures.stream is None:
            return None
        if self._producer is None or self._producer.handle != signatures.stream:
            self._producer = self._device.stream(signatures.stream)
        return self._producer

    def _work_for(self, signatures: NDArray[np.float32] | DeviceView, bank: UploadedBank) -> BatchWork:
        images, patches, width = signatures.shape
        on_device = isinstance(signatures, DeviceView)
        shape = images, patches, on_device
        if shape not in self._work:
            work = self._planned(images, patches, width, bank, on_device)
            if len(self._work) == MAX_GRAPHS:
                self._work.clear()
            self._work[shape] = work
        return self._work[shape]

    def _planned(self, images: int, patches: int, width: int, bank: UploadedBank, on_device: bool) -> BatchWork:
        rows = images * patches
        launches = bank.launches(images, patches)
        operands = self._room("operands", rows * bank.kernel.row_bytes)
        half_norms, within = self._room("half_norms", 4 * rows), self._room("within", 4 * rows)
        partial_sums = self._room("partial", 4 * rows * launches.slices)
        # Written by the GPU straight into host memory: contributions first, then the scores of the images.
        results = self._room("results", 8 * (rows + images), pinned=True)
        points = bank.operands, bank.half_norms, bank.weights
        outputs = operands, half_norms, within
        preparing = _arguments(bank.centre, np.float32(bank.scale), patches, *outputs)
        crossing = _arguments(operands, half_norms, *points, rows, bank.rows, launches.slices, partial_sums)
        scalars = np.float32(bank.unit), np.float64(bank.self_term)
        mmd2 = np.uintp(results.pointer + 8 * rows)
        sizes = launches.slices, images, patches
        finishing = _arguments(partial_sums, within, *sizes, *scalars, results, mmd2)

        def prepare(pointer: int) -> None:
            self._launch(bank, launches.prepare, (np.uintp(pointer), *preparing))

        def after_prepare() -> None:
            self._launch(bank, launches.cross, crossing)
            self._launch(bank, launches.finish, finishing)

        values = results.host[: 8 * (rows + images)].view(np.float64)
        if on_device:
            return BatchWork(None, prepare, after_prepare, values)
        nbytes = 4 * rows * width
        staging, x = self._room("staging", nbytes, pinned=True), self._room("x", nbytes)

        def whole() -> None:
            self._device.copy(x, staging, nbytes, self._stream)
            prepare(x.pointer)
            after_prepare()

        staged = staging.host[:nbytes].view(np.float32).reshape(images, patches, width)
        return BatchWork(staged, prepare, whole, values)

    def _launch(self, bank: UploadedBank, launch: Launch, arguments: tuple[np.generic, ...]) -> None:
        entry = bank.entries[launch.entry]
        self._device.launch(entry, launch.grid, launch.block, launch.shared, arguments, self._stream)

    def _repeat(self, work: BatchWork) -> None:
        """Do the work directly for a new shape, and as a graph from its second batch on: most odd shapes come once."""
        if not work.seen:
            work.seen = True
            work.rest()
            return
        if work.graph is None:
            work.graph = self._device.graph(work.rest, self._stream)
        work.graph.launch(self._stream)

    def _room(self, name: str, nbytes: int, *, pinned: bool = False) -> Memory:
        """Return the lane's memory of this name, at least nbytes of it. The last batch no longer uses it."""
        held = self._memory.get(name)
        if held is None or held.nbytes < nbytes:
            # Other shapes' work holds addresses.
            self._work.clear()
            if held is not None:
                self._memory.pop(name).free()
            held = self._memory[name] = self._device.allocate(nbytes, _SMALLER_BATCH, pinned=pinned)
        return held


def _arguments(*values: Memory | np.generic | int) -> tuple[np.generic, ...]:
    """Return a kernel's arguments: the address of a memory, an int as int32, other scalars as they are."""

    def argument(value: Memory | np.generic | int) -> np.generic:
        if isinstance(value, np.generic):
            return value
        return np.int32(value) if isinstance(value, int) else np.uintp(value.pointer)

    return tuple(map(argument, values))

"""The reduction on an NVIDIA GPU: signatures from host or GPU memory in, a few bytes per image out.

    out[n] = 1/N sum_n' k(x[n], x[n']) - 2 sum_m w[m] k(x[n], r[m]) + C,   k(a, b) = exp(-|a - b|^2 / (2 sigma^2))

How a signature becomes a score, file by file:

1. Here. `CudaReduction.submit` checks the shape and prepares the bank on first use (`UploadedBank`). It cuts a batch
   that is too large and gives each part to one of two lanes in turn. `Lane.start` copies the signatures to the GPU and
   launches three kernels, of which the last writes the scores to host memory. `Pending.scores` waits for them.
2. mmd/cuda/kernels.py says which kernel a GPU and a bank get, how a bank is prepared for it, and with which grid each
   of the three kernels is launched. mmd/__init__.py holds `Scores` and the check of shapes.
3. hardware/device.py is the GPU as this file sees it: memory, copies, modules, launches, events, streams and graphs.
   It also reads arrays that other libraries hold on the GPU. hardware/cuda_core.py is that GPU through cuda-core, and
   hardware/cubin.py compiles and caches the kernels.
4. One file of engines/kernels computes the cross term: 4_wgmma.cu on Hopper (compute capability 9.0), 3_tensor.cu on
   other GPUs, 2_tiled.cu for fp32, and 1_plain.cu for a steep kernel. engines/kernels/common.cuh holds the kernels
   around it: prepare the operands and the within-image term, and the final sums.

No N x M matrix is ever stored. The order of every sum depends only on the bank and the GPU, so an image gets the same
bits in any batch and on every run. Reference: mdmf_deploy.mmd.reference.ReferenceReduction (float64).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.hardware.device import (
    Device,
    DeviceView,
    Event,
    Graph,
    Memory,
    Stream,
    device_view,
    is_on_device,
    open_device,
    upload,
)
from mdmf_deploy.mmd import Scores, check_shape
from mdmf_deploy.mmd.cuda.kernels import Kernel, Launch, Launches, choose, prepare_bank

# Two batches at a time: the copies of one run beside the kernels of the other.
_LANES = 2
# Most rows (signatures) in flight per lane. A larger batch is cut.
MAX_ROWS = 1 << 16
# Graphs kept per lane, one for each batch shape. A run has two shapes: the batch size and the remainder at the end.
MAX_GRAPHS = 8
# Compute capabilities whose tensor cores do three fp16 products faster than one float32 product: A100, H100, B200 and
# B300. Consumer cards halve the rate of fp16 with float32 sums, so that by their data sheets the two are about equally
# fast, which has not been measured (engines/kernels/README.md). They keep float32.
_FP16X2 = (80, 90, 100, 103)
# Largest mean |r - centre|^2 / (2 sigma^2) for which exponents are computed from products. Beyond it they are computed
# from differences ("plain"), which is slower. A kernel value is off by up to 1e-6 times that mean. In fp32 the errors
# differ in sign; in fp16x2 all values come out too small, because tensor cores truncate. At 128 this moves a score by
# 5e-6 of itself in a hard case (64 points, d = 256, every patch about sigma from a point), and by less with a longer
# bank. fp16 and bf16 have no limit, because their operands round more than that anyway.
_STEEP = {"fp32": 16.0, "fp16x2": 128.0}
_SMALLER_BATCH = "lower --batch-size"
_SMALLER_BANK = "compress the bank (`mdmf bank compress`), or close what else runs on this GPU"


class Pending:
    """Scores that a GPU is still computing. Any thread may wait for them, in any order."""

    def __init__(self, batches: Sequence[BatchScores], patches: int) -> None:
        self._batches, self._patches = batches, patches

    def scores(self) -> Scores:
        """Wait for the scores and return them."""
        taken = [batch.take() for batch in self._batches]
        if not taken:
            return Scores(np.zeros(0), np.zeros((0, self._patches)))
        mmd2, contributions = zip(*taken, strict=True)
        return Scores(np.concatenate(mmd2), np.concatenate(contributions))

    @property
    def milliseconds(self) -> float:
        """Time the GPU spent on them, from the first copy to the last. Waits for the scores."""
        self.scores()
        return sum(batch.milliseconds for batch in self._batches)


class CudaReduction:
    """Satisfies the contract of every reduction, on a GPU.

    device: None for the first GPU.
    operand: the type that is multiplied, "fp32", "fp16x2", "fp16" or "bf16". None for fp16x2 on GPUs where it is faster
    than fp32, and fp32 on others.
    version: of the kernels ("plain", "tiled", "tensor"). None for the fastest that is accurate with the bank.
    Raises RuntimeUnavailable without a usable GPU, UsageError for an operand or width that has no kernel, and
    OutOfMemory.
    """

    name = "cuda"

    def __init__(self, device: Device | None = None, *, operand: str | None = None, version: str | None = None) -> None:
        self.device = open_device() if device is None else device
        self.operand = operand or ("fp16x2" if self.device.gpu.sm in _FP16X2 else "fp32")
        self._version = version
        self._lanes = [Lane(self.device) for _ in range(_LANES)]
        self._next = 0
        self._bank: UploadedBank | None = None
        self._lock = threading.Lock()

    def __call__(self, signatures: Any, bank: Bank) -> Scores:
        """Score (B, N, d) signatures: a NumPy array, or one with `__cuda_array_interface__`, which is not copied."""
        return self.submit(signatures, bank).scores()

    def submit(self, signatures: Any, bank: Bank) -> Pending:
        """Start scoring without waiting.

        A NumPy array may be changed as soon as this returns. An array on the GPU may be overwritten by work on its own
        stream (`stream` of its interface), which is made to wait. It must not be changed or freed in any other way
        before the scores are there.
        """
        view = device_view(signatures) if is_on_device(signatures) else None
        shape = signatures.shape if view is None else view.shape
        check_shape(shape, bank)
        images, patches, _ = shape
        with self._lock:
            uploaded = self._prepared(bank)
            step = max(1, MAX_ROWS // patches)
            batches = []
            for start in range(0, images, step):
                count = min(step, images - start)
                lane = self._lanes[self._next]
                self._next = (self._next + 1) % _LANES
                batch = signatures[start : start + count] if view is None else view.images(start, count)
                batches.append(lane.start(batch, uploaded))
        return Pending(batches, patches)

    def mark(self, stream: int) -> Event:
        """Record a new event on another library's stream (a cudaStream_t) and return it."""
        event = self.device.event()
        event.record(self.device.stream(stream))
        return event

    def prepare(self, bank: Bank) -> None:
        """Upload a bank ahead of its first image. Raises the same errors as the first call with it."""
        with self._lock:
            self._prepared(bank)

    def close(self) -> None:
        """Wait for running work and free all GPU memory. The next call allocates it again."""
        with self._lock:
            self._clear()

    def _prepared(self, bank: Bank) -> UploadedBank:
        if self._bank is None or self._bank.bank is not bank:
            kernel = self._kernel(bank)
            self._clear()
            self._bank = UploadedBank(self.device, bank, kernel)
        return self._bank

    def _kernel(self, bank: Bank) -> Kernel:
        sm, width = self.device.gpu.sm, bank.signatures.shape[1]
        if self._version is None and _steepness(bank) > _STEEP.get(self.operand, math.inf):
            return choose(sm, width, "fp32", "plain")
        return choose(sm, width, self.operand, self._version)

    def _clear(self) -> None:
        for lane in self._lanes:
            lane.clear()
        if self._bank is not None:
            self._bank.free()
        self._bank = None


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


def _steepness(bank: Bank) -> float:
    """Return the mean |r - centre|^2 / (2 sigma^2) of the bank's points, weighted by |w|."""
    centre = bank.signatures.mean(axis=0, dtype=np.float64)
    weights = np.abs(bank.weights)
    squared = 0.0
    for start in range(0, len(weights), MAX_ROWS):
        centred = bank.signatures[start : start + MAX_ROWS] - centre
        squared += float(weights[start : start + MAX_ROWS] @ np.einsum("md,md->m", centred, centred))
    return squared / (float(weights.sum()) or 1.0) / (2.0 * bank.sigma**2)

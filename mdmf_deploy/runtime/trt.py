"""TensorRT and TensorRT-RTX (extras: gpu, rtx): the bundle's graph, compiled for this GPU at first use."""

from __future__ import annotations

import functools
import logging
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import EngineError, OutOfMemory
from mdmf_deploy.hardware.device import Device, Event, Memory, open_device
from mdmf_deploy.runtime.batches import BatchSlice, BatchSplitter, DeviceArray
from mdmf_deploy.runtime.building.flavours import RTX, TENSORRT, Flavour
from mdmf_deploy.runtime.building.obtain import load_plan
from mdmf_deploy.runtime.building.plans import BuildRequest
from mdmf_deploy.runtime.building.profiles import DEFAULT, load_profile
from mdmf_deploy.runtime.needs import require

if TYPE_CHECKING:
    import tensorrt as trt

_LOG = logging.getLogger(__name__)

_FLOAT = 4  # bytes
_REMEDY = "lower the largest batch: take the profile latency, as --runtime {}:latency"


class _Slot(NamedTuple):
    """Memory for one batch of images on its way to the engine.

    staged: pinned on the host. It may be overwritten after `copied`.
    given: on the GPU. It may be overwritten after `consumed`.
    """

    staged: Memory
    given: Memory
    copied: Event
    consumed: Event


class TensorRtEngine:
    """One execution context on one stream, with a second stream for copies.

    Two slots let the next batch be copied in while the engine works on the last one.

    threads: without effect on a GPU.
    profile: a name, or a .toml file (runtime/building/profiles.py).
    Raises RuntimeUnavailable without a driver, a GPU or the library, EngineError if the graph cannot be built or the
    engine not loaded, OutOfMemory if the GPU has too little memory.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, profile: str = DEFAULT, flavour: Flavour = TENSORRT
    ) -> None:
        self.name = flavour.runtime
        # Check first: without a driver the library crashes instead of raising.
        require(self.name)
        self.precision: str = bundle.manifest.model.precision
        chosen = load_profile(profile)
        self._device: Device = open_device()
        self._library = flavour.load()
        gpu = self._device.gpu
        request = BuildRequest(bundle, flavour, self._library, chosen, gpu.compute_capability, gpu.name)
        plan, engine = load_plan(request, _log)
        self._remedy = _REMEDY.format(self.name)
        self._context: trt.IExecutionContext = _context(engine, gpu.name, self._remedy)
        self._engine: trt.ICudaEngine = engine
        (images,), (signatures,) = plan.card.inputs, plan.card.outputs
        self._input, self._output = images.name, signatures.name
        self._image, self._signature = images.shape[1:], signatures.shape[1:]
        self._stream, self._copies = self._device.stream(), self._device.stream()
        self._lock = threading.Lock()
        self._splitter = BatchSplitter(chosen.batch, self.name)
        self._slots = [self._slot(chosen.batch.max) for _ in range(2)]
        # A call's signatures, those of one slice, and a copy on the host.
        self._results = self._allocate(chosen.batch.max, self._signature)
        self._partial = self._allocate(chosen.batch.max, self._signature)
        self._fetched = self._allocate(chosen.batch.max, self._signature, pinned=True)
        self.environment = {
            "gpu": gpu.name,
            "driver": "CUDA {}.{}".format(*gpu.driver),
            flavour.module: str(self._library.__version__),
            "profile": chosen.name,
        }
        self._splitter.adapt(self, self._image)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._lock:
            signatures = self._run(images)
            nbytes = int(np.prod(signatures.shape)) * _FLOAT
            self._fetched = self._large_enough(self._fetched, nbytes, pinned=True)
            self._device.copy(self._fetched, self._results, nbytes, self._stream)
            self._stream.synchronize()
            fetched = self._fetched.host[:nbytes].view(np.float32)
            result: NDArray[np.float32] = fetched.reshape(signatures.shape).copy()
        return result

    def on_device(self, images: NDArray[np.float32]) -> DeviceArray:
        """Extract signatures and leave them on the GPU: (B, N, d), valid until the next call."""
        with self._lock:
            return self._run(images)

    def close(self) -> None:
        self._stream.synchronize()
        del self._context, self._engine
        inputs = (memory for slot in self._slots for memory in (slot.staged, slot.given))
        for memory in (*inputs, self._results, self._partial, self._fetched):
            memory.free()

    def _run(self, images: NDArray[np.float32]) -> DeviceArray:
        # Read the context first: on a closed engine this raises, before anything uses its freed memory.
        context: trt.IExecutionContext = self._context
        count = len(images)
        if count:
            self._results = self._large_enough(
                self._results, self._splitter.rows(count) * self._nbytes(self._signature)
            )
            for part in self._splitter.split(count):
                self._enqueue(context, images, part)
        return DeviceArray(self._results.pointer, (count, *self._signature), self._stream.handle, self._results)

    def _enqueue(self, context: trt.IExecutionContext, images: NDArray[np.float32], part: BatchSlice) -> None:
        nbytes = (part.stop - part.start) * self._nbytes(self._image)
        slot = self._slots[0]
        self._slots.reverse()
        slot.copied.synchronize()
        slot.staged.host[:nbytes] = np.ascontiguousarray(images[part.start : part.stop]).view(np.uint8).reshape(-1)
        self._copies.wait(slot.consumed)
        self._device.copy(slot.given, slot.staged, nbytes, self._copies)
        slot.copied.record(self._copies)
        self._stream.wait(slot.copied)
        # The library wants aligned outputs, and the rows of a later slice may not be aligned.
        first = part.start == 0
        ready = (
            context.set_input_shape(self._input, (part.rows, *self._image)),
            context.set_tensor_address(self._input, slot.given.pointer),
            context.set_tensor_address(self._output, (self._results if first else self._partial).pointer),
            context.execute_async_v3(self._stream.handle),
        )
        if not all(ready):
            raise EngineError(f"{self.name}: the engine refuses a batch of {part.rows}; run `mdmf build` again")
        slot.consumed.record(self._stream)
        if not first:
            extracted = (part.stop - part.start) * self._nbytes(self._signature)
            start = part.start * self._nbytes(self._signature)
            self._device.copy(self._results, self._partial, extracted, self._stream, offset=start)

    def _slot(self, count: int) -> _Slot:
        copied, consumed = self._device.event(), self._device.event()
        copied.record(self._copies)
        consumed.record(self._stream)
        staged = self._allocate(count, self._image, pinned=True)
        return _Slot(staged, self._allocate(count, self._image), copied, consumed)

    def _allocate(self, count: int, shape: tuple[int, ...], *, pinned: bool = False) -> Memory:
        return self._device.allocate(count * self._nbytes(shape), self._remedy, pinned=pinned)

    def _large_enough(self, memory: Memory, nbytes: int, *, pinned: bool = False) -> Memory:
        if memory.nbytes >= nbytes:
            return memory
        self._stream.synchronize()
        memory.free()
        return self._device.allocate(nbytes, self._remedy, pinned=pinned)

    def _nbytes(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape)) * _FLOAT


RtxEngine = functools.partial(TensorRtEngine, flavour=RTX)


def _context(engine: trt.ICudaEngine, gpu: str, remedy: str) -> Any:
    context = engine.create_execution_context()
    if context is None:
        needed = engine.device_memory_size_v2 / 2**20
        raise OutOfMemory(f"{gpu}: the engine needs {needed:.1f} MiB to work in, and cannot get them; {remedy}")
    return context


def _log(text: str) -> None:
    _LOG.info("%s", text)

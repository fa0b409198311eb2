"""PyTorch on the CPU and on a GPU (extras: torch, torch-cuda): the bundle's own graph, run by onnx_in_torch.py."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import OutOfMemory
from mdmf_deploy.hardware.gpu import probe
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.runtime.batches import BatchSplitter, DeviceArray
from mdmf_deploy.runtime.building.flavours import allows_tf32
from mdmf_deploy.runtime.building.profiles import DEFAULT, BatchRange, load_profile
from mdmf_deploy.runtime.needs import require
from mdmf_deploy.runtime.onnx_in_torch import OnnxGraph, Program

# Public, so that tests can run on the CPU.
DEVICE = "cuda:0"
_LOG = logging.getLogger(__name__)

_WARM_UP = 3  # calls before a capture, for libraries that allocate and choose kernels in the first ones
_RUNS = 3  # times that a check repeats a batch
_setting = threading.Lock()
_EVERY_SHIFT = 16  # images in the largest batch that a check rotates by every shift


class TorchCpuEngine:
    """The bundle's graph on the CPU. Every thread takes images of its own, one at a time, and waits for no other.

    So a signature depends neither on its batch, for whose size PyTorch chooses kernels, nor on the number of threads,
    among which MKL splits long sums. Threads that share an image also wait for each other after every operator: where
    other work keeps the cores busy, that was ten times slower.

    threads: None means every core of this process.
    Raises BundleError if the graph cannot be read, or holds anything that is not implemented.
    """

    name = "torch"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.precision: str = bundle.manifest.model.precision
        crop = bundle.manifest.preprocessing.crop
        self._signature = (bundle.manifest.model.pool**2, bundle.manifest.model.signature)
        # In a forked process, OpenMP waits for ever for threads that only the parent has.
        with bundle.unchanged_model() as path, _single_threaded():
            self._program = OnnxGraph(path).program(1, (3, crop, crop))
        self._pool = ThreadPoolExecutor(threads or cores(), thread_name_prefix="mdmf-torch")

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        # Read the program first: on a closed engine this raises.
        extract = partial(_extract, self._program)
        result = np.empty((len(images), *self._signature), np.float32)
        each = [images[place : place + 1] for place in range(len(images))]
        with _single_threaded():
            for place, signatures in enumerate(self._pool.map(extract, each)):
                result[place] = signatures.numpy()[0]
        return result

    def close(self) -> None:
        del self._program
        self._pool.shutdown()


class _Slot(NamedTuple):
    """Memory for one batch of images on its way to the graph.

    staged: pinned on the host. It may be overwritten after `copied`.
    given: on the GPU. It may be overwritten after `consumed`.
    """

    staged: Tensor
    given: Tensor
    copied: torch.cuda.Event
    consumed: torch.cuda.Event


class TorchCudaEngine:
    """The bundle's graph on the first GPU, captured as one CUDA graph. A second stream copies the next batch meanwhile.

    Every batch is run as one of the profile's opt, because cuBLAS chooses other kernels for other sizes. If even then a
    signature depends on its place in the batch, products are computed image by image, or else images are run one at a
    time: environment["products"] says which.

    threads: without effect on a GPU.
    profile: a name, or a .toml file (runtime/building/profiles.py), of which only batch.opt counts.
    Raises RuntimeUnavailable without a driver, a GPU or a PyTorch for it, BundleError as on the CPU, and OutOfMemory.
    """

    name = "torch-cuda"

    def __init__(self, bundle: Bundle, threads: int | None = None, profile: str = DEFAULT) -> None:
        require(self.name)
        gpu = probe()
        self.precision: str = bundle.manifest.model.precision
        chosen = load_profile(profile)
        crop = bundle.manifest.preprocessing.crop
        self._signature = (bundle.manifest.model.pool**2, bundle.manifest.model.signature)
        self.environment = {
            "gpu": gpu.name,
            "driver": "CUDA {}.{}".format(*gpu.driver),
            "torch": str(torch.__version__),
            "profile": chosen.name,
        }
        self._lock = threading.Lock()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(DEVICE)  # type: ignore[no-untyped-call]
        self._copies: torch.cuda.Stream = torch.cuda.Stream(DEVICE)  # type: ignore[no-untyped-call]
        with self._on_stream(), _products(tf32=allows_tf32(self.precision)):
            with bundle.unchanged_model() as path:
                graph = OnnxGraph(path, DEVICE, merge=True)
            self._open(graph, chosen.batch.opt, crop)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._lock, self._on_stream():
            self._run(images)
            # Waits for the stream.
            result: NDArray[np.float32] = self._results[: len(images)].to("cpu", copy=True).numpy()
        return result

    def on_device(self, images: NDArray[np.float32]) -> DeviceArray:
        """Extract signatures and leave them on the GPU: (B, N, d), valid until the next call."""
        with self._lock, self._on_stream():
            self._run(images)
            shape = (len(images), *self._signature)
            return DeviceArray(self._results.data_ptr(), shape, self._stream.cuda_stream, self._results)

    def close(self) -> None:
        self._copies.synchronize()
        self._stream.synchronize()
        del self._launch, self._program, self._signatures, self._results, self._images
        self._slots.clear()

    def _open(self, graph: OnnxGraph, opt: int, crop: int) -> None:
        """Take the first of three ways to multiply in which a signature depends on nothing but its image."""
        ways = (("together", opt, False), ("image by image", opt, True), ("one at a time", 1, False))
        failed = []
        for products, batch, apart in ways:
            self._prepare(graph, batch, crop, apart=apart)
            self.environment["products"] = products
            reason = self._dependence()
            if reason is None:
                break
            failed.append(f"{products}, a signature {reason}")
            if products != ways[-1][0]:
                del self._launch, self._program, self._signatures
        if failed:
            _LOG.info("%s: images are run %s. On this GPU, %s", self.name, products, "; ".join(failed))

    def _prepare(self, graph: OnnxGraph, batch: int, crop: int, *, apart: bool) -> None:
        """Allocate memory for batches of this size, and capture the graph for them."""
        # A captured graph reads the program's weights, and does not keep their memory.
        self._program = graph.program(batch, (3, crop, crop), apart=apart)
        self._splitter = BatchSplitter(BatchRange(opt=batch, max=batch), self.name, fixed=True)
        self._images = torch.zeros((batch, 3, crop, crop), device=DEVICE)
        self._slots = [self._slot() for _ in range(2)]
        self._results = torch.empty((batch, *self._signature), device=DEVICE)
        # Everything above is there before other streams use it.
        self._stream.synchronize()
        self._launch, self._signatures = captured(partial(self._program, self._images), self._stream)

    def _dependence(self) -> str | None:
        """Return what a signature depends on beside its image, bit by bit, or None. Takes about 20 batches."""
        batch = len(self._images)
        generator = torch.Generator(DEVICE).manual_seed(0)
        images, others = (torch.randn(self._images.shape, generator=generator, device=DEVICE) for _ in range(2))
        places = torch.arange(batch, device=DEVICE)
        expected = self._extracted(images)
        for _ in range(_RUNS):
            if not torch.equal(self._extracted(images), expected):
                return "differs from one run to the next"
        shuffled = torch.randperm(batch, generator=generator, device=DEVICE)
        for order in (*(places.roll(shift) for shift in _shifts(batch)), places.flip(0), shuffled):
            if not torch.equal(self._extracted(images[order]), expected[order]):
                return f"depends on its place in a batch of {batch}"
        for kept in (places % 2 == 0, places % 2 == 1, places < batch // 2):
            # Zeros stand where an engine has had no image yet.
            for other in (others, torch.zeros_like(others)):
                mixed = torch.where(kept[:, None, None, None], images, other)
                if not torch.equal(self._extracted(mixed)[kept], expected[kept]):
                    return f"depends on the images beside it in a batch of {batch}"
        return None

    def _extracted(self, images: Tensor) -> Tensor:
        self._images.copy_(images)
        self._launch()
        return self._signatures.clone()

    def _run(self, images: NDArray[np.float32]) -> None:
        # Read it first: on a closed engine this raises.
        launch = self._launch
        if len(images) > len(self._results):
            self._results = torch.empty((len(images), *self._signature), device=DEVICE)
        for part in self._splitter.split(len(images)):
            slot = self._slots[0]
            self._slots.reverse()
            rows = slice(0, part.stop - part.start)
            slot.copied.synchronize()
            slot.staged.numpy()[rows] = images[part.start : part.stop]
            self._copies.wait_event(slot.consumed)
            with torch.cuda.stream(self._copies):
                slot.given[rows].copy_(slot.staged[rows], non_blocking=True)
            slot.copied.record(self._copies)
            self._stream.wait_event(slot.copied)
            # Rows past the slice hold earlier images. No row depends on another.
            self._images[rows].copy_(slot.given[rows], non_blocking=True)
            slot.consumed.record(self._stream)
            launch()
            self._results[part.start : part.stop].copy_(self._signatures[rows], non_blocking=True)

    def _slot(self) -> _Slot:
        # Block instead of spinning: the decode threads need the CPU.
        copied, consumed = (torch.cuda.Event(blocking=True) for _ in range(2))  # type: ignore[no-untyped-call]
        staged = torch.empty(self._images.shape, pin_memory=DEVICE != "cpu")
        return _Slot(staged, torch.empty_like(self._images), copied, consumed)

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Give all work to the engine's stream, and turn PyTorch's error for memory into ours."""
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                yield
        except torch.OutOfMemoryError as error:
            reason = str(error).strip().splitlines()[0]
            remedy = f"take the profile latency, as --runtime {self.name}:latency, or close what else runs there"
            raise OutOfMemory(f"{self.environment['gpu']}: {reason}; {remedy}") from error


def _shifts(batch: int) -> list[int]:
    """Return the shifts that rotate a batch: all of a small one. Of a large one, few whose sums are all."""
    step = 1 if batch <= _EVERY_SHIFT else math.isqrt(batch - 1) + 1
    return [*range(1, step), *range(step, batch, step)]


def captured(run: Callable[[], Tensor], stream: torch.cuda.Stream) -> tuple[Callable[[], None], Tensor]:
    """Record `run` as a CUDA graph. Return a function that launches it on the current stream, and its result.

    The current stream must be `stream`. Memory keeps its place, so `run` must read its inputs from tensors that stay.
    The graph holds none of them: the caller must keep all that `run` reads, weights too, for as long as it launches.
    Source: docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs".
    """
    for _ in range(_WARM_UP):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate on the GPU meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = run()
    return graph.replay, result


def _extract(program: Program, image: NDArray[np.float32]) -> Tensor:
    with torch.inference_mode():
        return program(torch.tensor(image))


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Let operators use one thread each, also in threads that start now. The setting is the process's: put it back.

    One thread at a time may be inside. Otherwise the first to leave would give threads to the others' operators.
    """
    with _setting:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _forget() -> None:
    """Give a forked process a lock that no thread of its parent's holds."""
    global _setting
    _setting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def _products(*, tf32: bool) -> Iterator[None]:
    """Compute float32 products in TF32 or float32, and sum float16 ones in float32. Put PyTorch's settings back."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # PyTorch 2.9 renamed the settings, and warns of the old names.
    if hasattr(cudnn, "conv") and hasattr(matmul, "fp32_precision"):
        float32 = [(matmul, "fp32_precision"), (cudnn.conv, "fp32_precision")]
    else:
        float32 = [(matmul, "allow_tf32"), (cudnn, "allow_tf32")]
    wanted: list[tuple[object, str, object]] = [
        (where, name, (tf32 if name == "allow_tf32" else "tf32" if tf32 else "ieee")) for where, name in float32
    ]
    wanted += [(matmul, "allow_fp16_reduced_precision_reduction", False)]
    wanted += [(cudnn, "benchmark", False), (cudnn, "deterministic", True)]
    before = [(where, name, getattr(where, name)) for where, name, _ in wanted]
    try:
        for where, name, value in wanted:
            setattr(where, name, value)
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)

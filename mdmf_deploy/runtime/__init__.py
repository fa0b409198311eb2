"""Runtimes: crops to signatures, each by its own library behind the Engine protocol."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import RuntimeUnavailable, install, shortage
from mdmf_deploy.hardware.forks import keep_in_forks
from mdmf_deploy.hardware.host import saturates_int8

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.runtime.needs import Missing

# name -> module, class, the extra that installs it.
# A class is called as Class(bundle, threads=None). Runtimes on a GPU also take profile=.
ENGINES: dict[str, tuple[str, str, str]] = {
    "onnxruntime": ("mdmf_deploy.runtime.ort", "OrtEngine", "cpu"),
    "openvino": ("mdmf_deploy.runtime.ov", "OpenVinoEngine", "openvino"),
    "tensorrt": ("mdmf_deploy.runtime.trt", "TensorRtEngine", "gpu"),
    "rtx": ("mdmf_deploy.runtime.trt", "RtxEngine", "rtx"),
    "cuda": ("mdmf_deploy.runtime.ort_gpu", "CudaEngine", "gpu"),
    "ort-tensorrt": ("mdmf_deploy.runtime.ort_gpu", "OrtTensorRtEngine", "gpu"),
    "torch": ("mdmf_deploy.runtime.pt", "TorchCpuEngine", "torch"),
    "torch-cuda": ("mdmf_deploy.runtime.pt", "TorchCudaEngine", "torch-cuda"),
}
# Runtimes that need a GPU. See runtime/needs.py for their other requirements.
ON_GPU = frozenset({"tensorrt", "rtx", "cuda", "ort-tensorrt", "torch-cuda"})

# Runtimes that "auto" takes only where no other verified one on the CPU works: importing PyTorch takes seconds, and one
# image uses one core.
LAST = frozenset({"torch"})

# The fields of a record's environment that identify a machine. Only speeds of one machine can be compared.
MACHINE_FIELDS = ("machine", "system", "processor", "cpu", "cores")

# For how long images_per_second() runs an engine before the next one has its turn.
SECONDS_PER_TURN = 0.3
_BATCH = 8
_ROUNDS = 3
_LOG = logging.getLogger(__name__)
_TELEMETRY = "openvino_telemetry"


class Engine(Protocol):
    """A model ready to run.

    name: the runtime's name in ENGINES and in every row.
    precision: the precision of its graph.
    """

    name: str
    precision: str

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Extract signatures: (B, 3, crop, crop) to (B, N, d). The caller owns the result."""
        ...

    def close(self) -> None:
        """Free the engine's resources. It cannot be called afterwards."""
        ...


class GpuEngine(Engine, Protocol):
    """An engine that can leave its signatures on the GPU."""

    def on_device(self, images: NDArray[np.float32]) -> Any:
        """Extract signatures: (B, 3, crop, crop) to (B, N, d) float32 with a `__cuda_array_interface__`.

        With a stream in the interface, work on that stream may still be in progress. The result is valid until the
        next call, whose work waits for everything given to the stream before. Without a stream the result is
        finished, and the next call may overwrite it at once.
        """
        ...


def stays_on_device(engine: Engine) -> TypeGuard[GpuEngine]:
    """Return whether the engine can leave its signatures on the GPU."""
    return hasattr(engine, "on_device")


def installed() -> list[str]:
    """Return the runtimes that work here: their libraries can be imported and their hardware exists."""
    return [name for name in ENGINES if why_not(name) is None]


def why_not(name: str) -> Missing | None:
    """Return what a runtime of the table is missing here and how to get it, or None if it works."""
    from mdmf_deploy.runtime.needs import Missing, find_missing, find_unloadable

    if name in ON_GPU:
        return find_missing(name) or find_unloadable(name)
    module, _, extra = ENGINES[name]
    try:
        adapter = importlib.import_module(module)
    # A package whose shared libraries are absent raises ImportError, too.
    except ImportError as error:
        if (lacking := shortage(error)) is not None:
            raise lacking from error
        return Missing(str(error), install(extra))
    old = adapter.outdated(adapter.onnxruntime) if name == "onnxruntime" else None
    return None if old is None else Missing(old, install(extra))


def why_refused(name: str, precision: str) -> str | None:
    """Return why a runtime that works here refuses models of this precision on this processor, or None.

    OpenVINO's int8 saturates (docs.openvino.ai, "Saturation (overflow) Issue Workaround").
    """
    if name == "openvino" and precision == "int8" and saturates_int8():
        return "its int8 sums overflow on x86 CPUs without VNNI, and this CPU does not report VNNI"
    return None


def open_engine(name: str, bundle: Bundle, threads: int | None = None) -> Engine:
    """Open the runtime `name` for a bundle. threads: None means all cores.

    A runtime on a GPU takes a build profile after a colon: "tensorrt:throughput" (runtime/building/profiles.py).
    "auto" opens the first runtime of `preference` that works. It logs which one it chose and why.
    Raises RuntimeUnavailable if the runtime is unknown, not installed or has no GPU. Nothing is replaced silently.
    """
    if name == "auto":
        return _open_auto(bundle, threads)
    name, _, profile = name.partition(":")
    if name not in ENGINES:
        raise RuntimeUnavailable(f"runtime {name!r} is not known; choose auto or one of {', '.join(ENGINES)}")
    if profile and name not in ON_GPU:
        raise RuntimeUnavailable(f"runtime {name!r} has no build profiles, got {profile!r}; leave it out")
    module, class_name, extra = ENGINES[name]
    options = {"profile": profile} if profile else {}
    start = time.perf_counter()
    try:
        engine: Engine = getattr(importlib.import_module(module), class_name)(bundle, threads=threads, **options)
    except ImportError as error:
        if (lacking := shortage(error)) is not None:
            raise lacking from error
        raise RuntimeUnavailable(f"runtime {name!r} needs {error.name}; run: {install(extra)}") from error
    keep_in_forks(engine)
    seconds = time.perf_counter() - start
    _LOG.debug("opened %s %s for %s in %.2f s", name, engine.precision, bundle.path, seconds)
    return engine


def preference(bundle: Bundle) -> dict[str, str]:
    """Return the runtimes in the order in which "auto" tries them, each with its reason.

    Verified runtimes come first, PyTorch on the CPU last of them, then the table's other runtimes on the CPU. Speeds
    are compared only within the records of one machine: the one that measured most of the verified runtimes, and the
    newest of several such. Runtimes it did not measure come after those it did. If no machine measured two runtimes,
    the order is the table's: one speed alone does not show that its runtime is faster.
    """
    manifest = bundle.manifest
    precision = manifest.model.precision
    verified = [name for name in ENGINES if bundle.covers(name, precision)]
    measured: dict[tuple[str | None, ...], dict[str, float]] = {}
    for record in manifest.verification:
        if record.runtime in verified and record.precision == precision and record.images_per_second:
            machine = tuple(record.environment.get(name) for name in MACHINE_FIELDS)
            # Reinsert, so that the newest machine comes last.
            measured[machine] = measured.pop(machine, {}) | {record.runtime: record.images_per_second}
    speeds = max(reversed(measured.values()), key=len, default={})
    if len(speeds) < 2:
        speeds = {}
    verified.sort(key=lambda name: (name in LAST, -speeds.get(name, 0.0)))
    reasons = {
        name: f"verified, {speeds[name]:.3g} images/s where speeds were compared" if name in speeds else "verified"
        for name in verified
    }
    # Skip unverified GPU runtimes: building an engine takes minutes and its verdicts would be withheld.
    return reasons | {name: "not verified" for name in ENGINES if name not in verified and name not in ON_GPU}


def images_per_second(engines: Sequence[Engine], crop: int) -> list[float]:
    """Measure how many images per second each engine turns into signatures, without decoding and scoring.

    crop: the side of the square images, in pixels.
    Returns each engine's best rate over three turns, at batches of 8. Engines take turns, so that a busy moment slows
    all of them. This takes about 1 s per engine, or the time of four batches if that is longer.
    """
    images = np.random.default_rng(0).standard_normal((_BATCH, 3, crop, crop)).astype(np.float32)
    best = [0.0] * len(engines)
    for engine in engines:
        engine(images)  # The first call compiles and allocates.
    for _ in range(_ROUNDS):
        for place, engine in enumerate(engines):
            end = time.perf_counter() + SECONDS_PER_TURN
            while True:
                start = time.perf_counter()
                engine(images)
                now = time.perf_counter()
                best[place] = max(best[place], _BATCH / (now - start))
                if now >= end:
                    break
    return best


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Import openvino and nncf in this context: they find their telemetry package missing and do without it.

    Otherwise they report their use over the network, OpenVINO at its import and NNCF at every call.
    """
    present = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        if present is not None:
            sys.modules[_TELEMETRY] = present


def _open_auto(bundle: Bundle, threads: int | None) -> Engine:
    passed_over: list[str] = []
    order = preference(bundle)
    for place, (name, reason) in enumerate(order.items()):
        try:
            engine = open_engine(name, bundle, threads)
        except RuntimeUnavailable as error:
            passed_over.append(str(error))
            continue
        rest = [f"{other}: {why}" for other, why in list(order.items())[place + 1 :]]
        _LOG.info("runtime %s (%s)", name, "; ".join([reason, *passed_over]))
        if rest:
            _LOG.debug("other runtimes: %s", "; ".join(rest))
        return engine
    raise RuntimeUnavailable(f"no runtime is installed; run: {install('cpu')}")

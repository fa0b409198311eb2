"""Runtimes: whatever turns images into signatures, behind one protocol."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import RuntimeUnavailable

if TYPE_CHECKING:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.runtime.needs import Lack


class Engine(Protocol):
    """A model ready to run.

    name: as in the table below and in every row.  precision: that of the graph it runs.
    """

    name: str
    precision: str

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, 3, crop, crop) in, (B, N, d) out; the caller owns the result."""
        ...

    def close(self) -> None:
        """Free what the engine holds; it cannot be called afterwards."""
        ...


class GpuEngine(Engine, Protocol):
    """An engine whose signatures can stay where they are."""

    def on_device(self, images: NDArray[np.float32]) -> Any:
        """(B, 3, crop, crop) in; (B, N, d) float32 out, with a `__cuda_array_interface__`.

        It may still be in work on the interface's stream, and is valid until the next call, whose work waits for what
        that stream was given; without a stream it is finished, and the next call may overwrite it at once.
        """
        ...


def stays_on_device(engine: Engine) -> TypeGuard[GpuEngine]:
    """Whether the engine can leave its signatures on the GPU."""
    return hasattr(engine, "on_device")


# name -> module, what builds it, extra that installs it.  Built as Class(bundle, threads=None); on a GPU also profile=.
ENGINES: dict[str, tuple[str, str, str]] = {
    "onnxruntime": ("mdmf_deploy.runtime.ort", "OrtEngine", "cpu"),
    "openvino": ("mdmf_deploy.runtime.ov", "OpenVinoEngine", "openvino"),
    "tensorrt": ("mdmf_deploy.runtime.trt", "TensorRtEngine", "gpu"),
    "rtx": ("mdmf_deploy.runtime.trt", "RtxEngine", "rtx"),
    "cuda": ("mdmf_deploy.runtime.ort_gpu", "CudaEngine", "gpu"),
    "ort-tensorrt": ("mdmf_deploy.runtime.ort_gpu", "OrtTensorRtEngine", "gpu"),
}
# Those of them that need a GPU (mdmf_deploy.runtime.needs says what else).
ON_GPU = frozenset({"tensorrt", "rtx", "cuda", "ort-tensorrt"})

# What of a record's environment makes figures comparable: a machine, whatever its libraries.
_MACHINE = ("machine", "system", "processor", "cpu", "cores")


def installed() -> list[str]:
    """The runtimes of the table that can be used here: their libraries can be imported, their hardware is there."""
    return [name for name in ENGINES if why_not(name) is None]


def why_not(name: str) -> Lack | None:
    """Why a runtime of the table cannot be used here, and what would enable it; None if it can."""
    from mdmf_deploy.errors import install
    from mdmf_deploy.runtime.needs import Lack, lack, unloadable

    if name in ON_GPU:
        return lack(name) or unloadable(name)
    module, _, extra = ENGINES[name]
    try:
        importlib.import_module(module)
    # A package can be there and its shared libraries not: that is an ImportError, too.
    except ImportError as error:
        return Lack(str(error), install(extra))
    return None


def open_engine(name: str, bundle: Bundle, threads: int | None = None) -> Engine:
    """The engine `name` for this bundle; threads: None means all cores.

    A runtime on a GPU may be given a build profile: "tensorrt:throughput" (mdmf_deploy.runtime.building.profiles).
    "auto" is the first of `preference` that can be opened; it says on stderr which one, and why.
    Raises RuntimeUnavailable if the runtime is unknown, not installed or has no GPU; nothing is ever silently replaced.
    """
    if name == "auto":
        return _open_auto(bundle, threads)
    name, _, profile = name.partition(":")
    if name not in ENGINES:
        raise RuntimeUnavailable(f"runtime {name!r} is not known; choose auto or one of {', '.join(ENGINES)}")
    if profile and name not in ON_GPU:
        raise RuntimeUnavailable(f"runtime {name!r} has no build profiles, got {profile!r}; leave it out")
    module, class_name, extra = ENGINES[name]
    chosen = {"profile": profile} if profile else {}
    try:
        engine: Engine = getattr(importlib.import_module(module), class_name)(bundle, threads=threads, **chosen)
    except ImportError as error:
        raise RuntimeUnavailable(
            f"runtime {name!r} needs {error.name}; run: pip install 'mdmf-deploy[{extra}]'"
        ) from error
    return engine


def preference(bundle: Bundle) -> dict[str, str]:
    """Runtimes in the order in which "auto" tries them -> why: the verified ones, then the table's others for the CPU.

    Speeds are compared only within one machine's records: those of the machine that measured most of the verified
    runtimes, the newest such.  Runtimes it did not measure come after its own.  Where no machine measured two, the
    table's order holds: one figure cannot say that its runtime is the faster one.
    """
    manifest = bundle.manifest
    precision = manifest.model.precision
    verified = [name for name in ENGINES if bundle.covers(name, precision)]
    measured: dict[tuple[str | None, ...], dict[str, float]] = {}
    for record in manifest.verification:
        if record.runtime in verified and record.precision == precision and record.images_per_second:
            machine = tuple(record.environment.get(name) for name in _MACHINE)
            # The newest comes last.
            measured[machine] = measured.pop(machine, {}) | {record.runtime: record.images_per_second}
    speeds = max(reversed(measured.values()), key=len, default={})
    if len(speeds) < 2:
        speeds = {}
    verified.sort(key=lambda name: -speeds.get(name, 0.0))
    reasons = {
        name: f"verified, {speeds[name]:.3g} images/s where they were compared" if name in speeds else "verified"
        for name in verified
    }
    # Nobody wants minutes of building for a runtime whose verdicts would be withheld.
    return reasons | {name: "not verified" for name in ENGINES if name not in verified and name not in ON_GPU}


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
        print(f"mdmf: runtime {name} ({'; '.join([reason, *passed_over, *rest])})", file=sys.stderr)
        return engine
    raise RuntimeUnavailable("no runtime is installed; run: pip install 'mdmf-deploy[cpu]'")

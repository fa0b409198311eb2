"""Requirements of the GPU runtimes: a driver, a GPU, and a library in a version that fits."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import re
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import NamedTuple

from mdmf_deploy.errors import RuntimeUnavailable, install, installed
from mdmf_deploy.hardware.device import outdated
from mdmf_deploy.hardware.gpu import OLDEST as ANY_CUDA
from mdmf_deploy.hardware.gpu import probe
from mdmf_deploy.runtime.building.flavours import OLDEST, RTX, TENSORRT, Flavour, dotted, version_of
from mdmf_deploy.runtime.building.rtx import capabilities

# NVIDIA's libraries as ELF's table of needed libraries and PE's imports name them. libcuda belongs to the driver.
_NVIDIA_LIBRARIES = re.compile(
    rb"lib(?:cublas|cublasLt|cudart|cudnn|cufft|curand|nvinfer|nvonnxparser)\.so\.\d+|nvinfer_\d+\.dll"
)
# The providers of ONNX Runtime that each of its GPU runtimes loads.
_PROVIDERS = {"cuda": ("cuda",), "ort-tensorrt": ("tensorrt", "cuda")}


class Missing(NamedTuple):
    """The reason why a runtime does not work here, and the remedy. Neither ends with a full stop."""

    missing: str
    enable: str


_Needed = tuple[tuple[int, int], list[Missing]]
"""The CUDA version that the driver must serve, and what is missing besides a driver."""


def find_missing(runtime: str) -> Missing | None:
    """Return everything a GPU runtime is missing, driver first, or None. Safe to call without a driver."""
    cuda, library = REQUIREMENTS[runtime]()
    found = [*_missing_driver(cuda), *library]
    if not found:
        return None
    missing, enable = (dict.fromkeys(parts) for parts in zip(*found, strict=True))
    return Missing(", and ".join(missing), ", then ".join(enable))


def find_unloadable(runtime: str) -> Missing | None:
    """Return the first library that ONNX Runtime's provider for this runtime links and that does not load, or None.

    This reads the whole provider, so call it only for a report, or after the provider has failed.
    """
    names = [name for provider in _PROVIDERS.get(runtime, ()) for name in _linked_libraries(provider)]
    if names:
        preload()
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError as error:
            reason = f"onnxruntime's provider needs {name}, which does not load ({error})"
            return Missing(reason, "pip install 'onnxruntime-gpu[cuda,cudnn]'")
    return None


def preload() -> None:
    """Load NVIDIA's libraries from the Python packages that hold them, for ONNX Runtime's providers."""
    onnxruntime = importlib.import_module("onnxruntime")
    if hasattr(onnxruntime, "preload_dlls"):
        # It prints the names it does not find, and stdout is for rows.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def require(runtime: str) -> None:
    """Raise RuntimeUnavailable, with the message of `mdmf doctor`, unless the GPU runtime works here."""
    if (found := find_missing(runtime)) is not None:
        raise RuntimeUnavailable(f"runtime {runtime!r}: {found.missing}; {found.enable}")


def require_library(flavour: Flavour) -> None:
    """Raise RuntimeUnavailable unless the library is installed. That is enough for RTX to build, without a GPU."""
    for missing, enable in _missing_library(flavour):
        raise RuntimeUnavailable(f"flavour {flavour.runtime!r}: {missing}; run: {enable}")


def _missing_driver(cuda: tuple[int, int]) -> list[Missing]:
    try:
        probe(cuda)
    except RuntimeUnavailable as error:
        missing, _, enable = str(error).partition("; ")
        return [Missing(missing.removeprefix("no GPU: "), enable)]
    return []


def _missing_library(flavour: Flavour) -> list[Missing]:
    if util.find_spec(flavour.module) is None:
        return [Missing(f"{flavour.module} is not installed", install(flavour.extra))]
    try:
        library = flavour.load()
    # Importing it loads its shared libraries, which can fail in any of these ways.
    except (ImportError, OSError, RuntimeError) as error:
        why = " ".join(str(error).split())
        return [Missing(f"{flavour.module} is installed and does not load ({why})", install(flavour.extra))]
    if flavour is TENSORRT and version_of(library) < OLDEST:
        old = f"tensorrt {library.__version__} is too old, {dotted(OLDEST)} is needed"
        return [Missing(old, install(flavour.extra))]
    return []


def _tensorrt(flavour: Flavour) -> _Needed:
    # We allocate TensorRT's inputs and outputs ourselves, through mdmf_deploy.hardware.device.
    problem = outdated("cuda-core") if _importable("cuda.core") else "cuda-core is not installed"
    device = [Missing(problem, install(flavour.extra))] if problem else []
    # The name of the installed package ends with the CUDA version it was built for.
    cuda = next(((major, 0) for major in (14, 13, 12) if installed(f"{flavour.module}_cu{major}")), ANY_CUDA)
    return cuda, [*_missing_library(flavour), *device]


def _rtx() -> _Needed:
    cuda, missing = _tensorrt(RTX)
    try:
        gpu = probe(cuda)
    except RuntimeUnavailable:
        return cuda, missing
    if not missing and gpu.compute_capability not in capabilities(RTX.load()):
        other = f"TensorRT-RTX does not support {gpu.name}, of compute capability {dotted(gpu.compute_capability)}"
        missing.append(Missing(other, "use --runtime tensorrt"))
    return cuda, missing


def _onnxruntime_cuda() -> _Needed:
    if util.find_spec("onnxruntime") is None:
        return ANY_CUDA, [Missing("onnxruntime-gpu is not installed", install("gpu"))]
    about = importlib.import_module("onnxruntime.capi.build_and_package_info")
    if about.package_name == "onnxruntime":
        other = "the installed build of onnxruntime supports the CPU alone"
        return ANY_CUDA, [Missing(other, install("gpu"))]
    # Imported late: it imports onnxruntime itself.
    from mdmf_deploy.runtime.ort import outdated as outdated_onnxruntime

    old = outdated_onnxruntime(importlib.import_module("onnxruntime"))
    if old is not None:
        return ANY_CUDA, [Missing(old, install("gpu"))]
    major = str(getattr(about, "cuda_version", "")).partition(".")[0]
    return (int(major), 0) if major.isdigit() else ANY_CUDA, []


def _onnxruntime_tensorrt() -> _Needed:
    cuda, missing = _onnxruntime_cuda()
    found = [*missing, *(one for one in _tensorrt(TENSORRT)[1] if one not in missing)]
    if not found and (linked := _linked_tensorrt()) is not None:
        at_hand = version_of(TENSORRT.load())[0]
        if at_hand != linked:
            other = f"onnxruntime links TensorRT {linked}, and {at_hand} is installed"
            found = [Missing(other, f"pip install 'tensorrt>={linked},<{linked + 1}'")]
    return cuda, found


def _torch() -> _Needed:
    absent = [name for name in ("torch", "onnx") if util.find_spec(name) is None]
    missing = [Missing(f"{name} is not installed", install("torch-cuda")) for name in absent]
    if "torch" in absent:
        return ANY_CUDA, missing
    torch = importlib.import_module("torch")
    if torch.version.cuda is None:
        other = f"the installed torch {torch.__version__} has no CUDA"
        return ANY_CUDA, [Missing(other, "install a build for CUDA (pytorch.org/get-started)"), *missing]
    return (int(torch.version.cuda.partition(".")[0]), 0), missing


def _linked_tensorrt() -> int | None:
    """Return the major version of TensorRT that ONNX Runtime's provider links, or None if its file does not show it."""
    name = re.search(r"nvinfer(?:\.so\.|_)(\d+)", " ".join(_linked_libraries("tensorrt")))
    return int(name[1]) if name else None


def _linked_libraries(provider: str) -> list[str]:
    """Return the file names of NVIDIA's libraries that a provider of ONNX Runtime links, sorted."""
    spec = util.find_spec("onnxruntime.capi")
    folders = spec.submodule_search_locations or () if spec else ()
    files = [file for folder in folders for file in Path(folder).glob(f"*onnxruntime_providers_{provider}.*")]
    found = {name for file in files for name in _NVIDIA_LIBRARIES.findall(file.read_bytes())}
    return sorted(name.decode() for name in found)


def _importable(name: str) -> bool:
    try:
        return util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


REQUIREMENTS: dict[str, Callable[[], _Needed]] = {
    "tensorrt": lambda: _tensorrt(TENSORRT),
    "rtx": _rtx,
    "cuda": _onnxruntime_cuda,
    "ort-tensorrt": _onnxruntime_tensorrt,
    "torch-cuda": _torch,
}

"""What the GPU runtimes need that this machine may lack: a driver, a GPU, the library, in a version that fits."""

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
from mdmf_deploy.hardware.gpu import OLDEST as ANY_CUDA
from mdmf_deploy.hardware.gpu import probe
from mdmf_deploy.runtime.building.flavours import OLDEST, RTX, TENSORRT, Flavour, dotted, version_of
from mdmf_deploy.runtime.building.rtx import capabilities


class Lack(NamedTuple):
    """Why a runtime cannot be used here, and what would enable it; neither ends with a full stop."""

    missing: str
    enable: str


def lack(runtime: str) -> Lack | None:
    """All that a GPU runtime lacks, the driver first; None if nothing.  Nothing is loaded that needs a driver."""
    cuda, library = _ON_GPU[runtime]()
    lacks = [*_driver(cuda), *library]
    if not lacks:
        return None
    missing, enable = (dict.fromkeys(parts) for parts in zip(*lacks, strict=True))
    return Lack(", and ".join(missing), ", then ".join(enable))


def unloadable(runtime: str) -> Lack | None:
    """The first library that the provider of ONNX Runtime behind this runtime is linked to and that does not load here.

    It reads the whole provider, so it is for whoever has the time, or has seen that the provider does not work.
    """
    names = [name for provider in _PROVIDERS.get(runtime, ()) for name in _links(provider)]
    if names:
        preload()
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError as error:
            told = f"onnxruntime's provider needs {name}, which does not load ({error})"
            return Lack(told, "pip install 'onnxruntime-gpu[cuda,cudnn]'")
    return None


def preload() -> None:
    """Load those of NVIDIA's libraries that lie where only Python finds them, for ONNX Runtime's providers."""
    onnxruntime = importlib.import_module("onnxruntime")
    if hasattr(onnxruntime, "preload_dlls"):
        # It prints what it does not find, and rows may be on stdout.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def require(runtime: str) -> None:
    """Raise RuntimeUnavailable, in the words that `mdmf doctor` has, unless the GPU runtime can be used here."""
    if (found := lack(runtime)) is not None:
        raise RuntimeUnavailable(f"runtime {runtime!r}: {found.missing}; {found.enable}")


def require_library(flavour: Flavour) -> None:
    """Raise RuntimeUnavailable unless the library is there to build with; RTX needs no GPU for that."""
    for missing, enable in _library(flavour):
        raise RuntimeUnavailable(f"flavour {flavour.runtime!r}: {missing}; run: {enable}")


# As ELF's table of needed libraries and PE's of imports have them; libcuda is the driver's.
_NVIDIAS = re.compile(
    rb"lib(?:cublas|cublasLt|cudart|cudnn|cufft|curand|nvinfer|nvonnxparser)\.so\.\d+|nvinfer_\d+\.dll"
)
_Needed = tuple[tuple[int, int], list[Lack]]


def _driver(cuda: tuple[int, int]) -> list[Lack]:
    try:
        probe(cuda)
    except RuntimeUnavailable as error:
        missing, _, enable = str(error).partition("; ")
        return [Lack(missing.removeprefix("no GPU: "), enable)]
    return []


def _tensorrt(flavour: Flavour) -> _Needed:
    # TensorRT takes its inputs and outputs where we put them, through mdmf_deploy.hardware.device.
    memory = Lack("cuda-core is not installed", install(flavour.extra))
    return _cuda_of(flavour.module), [*_library(flavour), *([] if _importable("cuda.core") else [memory])]


def _library(flavour: Flavour) -> list[Lack]:
    if util.find_spec(flavour.module) is None:
        return [Lack(f"{flavour.module} is not installed", install(flavour.extra))]
    try:
        library = flavour.load()
    # Its own libraries are found when it is imported, and reported in either way.
    except (ImportError, OSError, RuntimeError) as error:
        why = " ".join(str(error).split())
        return [Lack(f"{flavour.module} is installed and does not load ({why})", install(flavour.extra))]
    if flavour is TENSORRT and version_of(library) < OLDEST:
        old = f"tensorrt {library.__version__} is too old, {dotted(OLDEST)} is needed"
        return [Lack(old, install(flavour.extra))]
    return []


def _rtx() -> _Needed:
    cuda, lacks = _tensorrt(RTX)
    try:
        gpu = probe(cuda)
    except RuntimeUnavailable:
        return cuda, lacks
    if not lacks and gpu.compute_capability not in capabilities(RTX.load()):
        other = f"TensorRT-RTX is not for {gpu.name}, of compute capability {dotted(gpu.compute_capability)}"
        lacks.append(Lack(other, "use --runtime tensorrt"))
    return cuda, lacks


def _onnxruntime_cuda() -> _Needed:
    if util.find_spec("onnxruntime") is None:
        return ANY_CUDA, [Lack("onnxruntime-gpu is not installed", install("gpu"))]
    about = importlib.import_module("onnxruntime.capi.build_and_package_info")
    if about.package_name == "onnxruntime":
        other = "the build of onnxruntime that is installed knows the CPU alone"
        return ANY_CUDA, [Lack(other, install("gpu"))]
    major = str(getattr(about, "cuda_version", "")).partition(".")[0]
    return (int(major), 0) if major.isdigit() else ANY_CUDA, []


def _onnxruntime_tensorrt() -> _Needed:
    cuda, lacks = _onnxruntime_cuda()
    found = [*lacks, *(one for one in _tensorrt(TENSORRT)[1] if one not in lacks)]
    if not found and (wanted := _linked()) is not None:
        at_hand = version_of(TENSORRT.load())[0]
        if at_hand != wanted:
            other = f"onnxruntime links TensorRT {wanted}, and {at_hand} is installed"
            found = [Lack(other, f"pip install 'tensorrt>={wanted},<{wanted + 1}'")]
    return cuda, found


def _linked() -> int | None:
    """The major version of TensorRT that ONNX Runtime's provider links; None if it does not say."""
    name = re.search(r"nvinfer(?:\.so\.|_)(\d+)", " ".join(_links("tensorrt")))
    return int(name[1]) if name else None


def _links(provider: str) -> list[str]:
    """The libraries of NVIDIA's that a provider of ONNX Runtime is linked to, by file name, sorted."""
    spec = util.find_spec("onnxruntime.capi")
    folders = spec.submodule_search_locations or () if spec else ()
    files = [file for folder in folders for file in Path(folder).glob(f"*onnxruntime_providers_{provider}.*")]
    found = {name for file in files for name in _NVIDIAS.findall(file.read_bytes())}
    return sorted(name.decode() for name in found)


def _importable(name: str) -> bool:
    try:
        return util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _cuda_of(module: str) -> tuple[int, int]:
    """The CUDA version that a TensorRT package was built for, which its name ends with."""
    return next(((major, 0) for major in (14, 13, 12) if installed(f"{module}_cu{major}")), ANY_CUDA)


_PROVIDERS = {"cuda": ("cuda",), "ort-tensorrt": ("tensorrt", "cuda")}
_ON_GPU: dict[str, Callable[[], _Needed]] = {
    "tensorrt": lambda: _tensorrt(TENSORRT),
    "rtx": _rtx,
    "cuda": _onnxruntime_cuda,
    "ort-tensorrt": _onnxruntime_tensorrt,
}

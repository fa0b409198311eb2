"""ONNX Runtime on a GPU: its CUDA provider, and its TensorRT provider (extra: gpu).

Options: onnxruntime.ai/docs/execution-providers, "CUDA" and "NVIDIA - TensorRT".  A provider that cannot be loaded is
replaced by the CPU without an error, so the one that the session has is looked at; what get_available_providers() lists
proves nothing.
"""

from __future__ import annotations

import contextlib
import functools
import io
import threading
from collections import deque

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import BundleError, OutOfMemory, RuntimeUnavailable
from mdmf_deploy.files import cache_folder
from mdmf_deploy.hardware.gpu import probe
from mdmf_deploy.runtime.batches import OnDevice, Part, Sizes
from mdmf_deploy.runtime.building.flavours import TENSORRT, allows_tf32
from mdmf_deploy.runtime.building.obtain import engine_key
from mdmf_deploy.runtime.building.plans import EngineKey
from mdmf_deploy.runtime.building.profiles import DEFAULT, Profile, load_profile
from mdmf_deploy.runtime.needs import Lack, preload, require, unloadable

_INPUT = "images"  # mdmf_deploy.bundle.manifest.INPUT, which takes torch to import
_DEVICE = "cuda"
_CUDA, _TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
_MIB = 2**20
_WARNING, _FATAL = 2, 4
Options = dict[str, str]


class OrtGpuEngine:
    """One session over the bundle's graph on the first GPU.  threads mean nothing here.

    profile: as building/profiles.py reads it; to the CUDA provider only its largest batch means something.
    Raises RuntimeUnavailable without a driver, a GPU or the provider, or if the session would run elsewhere;
    BundleError if the graph cannot be loaded.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, profile: str = DEFAULT, *, name: str, tensorrt: bool
    ) -> None:
        self.name = name
        require(name)
        gpu = probe()
        self.precision: str = bundle.manifest.model.precision
        chosen = load_profile(profile)
        cuda = (_CUDA, cuda_options(self.precision))
        crop = bundle.manifest.preprocessing.crop
        image = (3, crop, crop)
        if tensorrt:
            # Its libraries lie where only its own package finds them.
            version = f"{onnxruntime.__version__} {TENSORRT.load().__version__}"
            key = engine_key(bundle, "onnxruntime", version, (), chosen, gpu.compute_capability, gpu.name)
            providers = [(_TENSORRT, tensorrt_options(key, chosen, image)), cuda]
        else:
            providers = [cuda]
        self._session = _session(bundle, name, providers)
        self._output = self._session.get_outputs()[0].name
        self._image = image
        self._signature = (bundle.manifest.model.pool**2, bundle.manifest.model.signature)
        self._lock = threading.Lock()
        self._kept: deque[onnxruntime.OrtValue] = deque(maxlen=3)
        self._sizes = Sizes(chosen.batch, name)
        self.environment = {
            "gpu": gpu.name,
            "driver": "CUDA {}.{}".format(*gpu.driver),
            "onnxruntime": onnxruntime.__version__,
            "profile": chosen.name,
        }
        if tensorrt:
            self.environment[TENSORRT.module] = str(TENSORRT.load().__version__)
        self._sizes.settle(self, image)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._lock:
            made = self._run(images)
            result: NDArray[np.float32] = made.numpy()[: len(images)].copy()
        return result

    def on_device(self, images: NDArray[np.float32]) -> OnDevice:
        """As a call, but the signatures stay on the GPU: (B, N, d), valid until the next call."""
        with self._lock:
            made = self._run(images)
            # The session has waited for its stream.  A reduction may still be at the last two.
            self._kept.append(made)
            return OnDevice(made.data_ptr(), (len(images), *self._signature), None, made)

    def close(self) -> None:
        del self._session
        self._kept.clear()

    def _run(self, images: NDArray[np.float32]) -> onnxruntime.OrtValue:
        count = len(images)
        rows = self._sizes.rows(count) if count else 0
        made = onnxruntime.OrtValue.ortvalue_from_shape_and_type((rows, *self._signature), np.float32, _DEVICE, 0)
        for part in self._sizes.parts(count):
            binding = self._session.io_binding()
            binding.bind_cpu_input(_INPUT, self._padded(images, part))
            binding.bind_output(
                self._output,
                _DEVICE,
                0,
                np.float32,
                (part.rows, *self._signature),
                made.data_ptr() + part.start * int(np.prod(self._signature)) * 4,
            )
            try:
                self._session.run_with_iobinding(binding)
            # Of onnxruntime's exceptions none is for memory alone.
            except Exception as error:
                if "alloc" not in str(error):
                    raise
                told = " ".join(str(error).split())
                remedy = f"take the profile latency, as --runtime {self.name}:latency, or close what else runs there"
                raise OutOfMemory(f"{self.environment['gpu']}: {told}; {remedy}") from error
        return made

    def _padded(self, images: NDArray[np.float32], part: Part) -> NDArray[np.float32]:
        given = np.ascontiguousarray(images[part.start : part.stop])
        if len(given) == part.rows:
            return given
        padded = np.zeros((part.rows, *self._image), np.float32)
        padded[: len(given)] = given
        return padded


CudaEngine = functools.partial(OrtGpuEngine, name="cuda", tensorrt=False)
OrtTensorRtEngine = functools.partial(OrtGpuEngine, name="ort-tensorrt", tensorrt=True)


def cuda_options(precision: str) -> Options:
    return {
        "device_id": "0",
        "use_tf32": "1" if allows_tf32(precision) else "0",
        # The exhaustive search takes what was fastest that day: other bits on another.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


def tensorrt_options(key: EngineKey, profile: Profile, image: tuple[int, ...]) -> Options:
    """key: of the engine, whose cache is a folder of its own: the provider looks at little more than the graph.

    Without the flags for lower precisions the network is strongly typed: the graph's own types decide.
    """
    folder = cache_folder("engines") / f"ort-{key.digest[:24]}"
    folder.mkdir(exist_ok=True)
    size = "x".join(map(str, image))
    shapes = {
        f"trt_profile_{which}_shapes": f"{_INPUT}:{count}x{size}"
        for which, count in (("min", profile.batch.min), ("opt", profile.batch.opt), ("max", profile.batch.max))
    }
    return {
        "device_id": "0",
        "trt_fp16_enable": "0",
        "trt_bf16_enable": "0",
        "trt_int8_enable": "0",
        "trt_max_workspace_size": str(profile.workspace_mib * _MIB),
        "trt_builder_optimization_level": str(profile.level),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        **shapes,
    }


def _session(bundle: Bundle, name: str, providers: list[tuple[str, Options]]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Q/DQ pairs fused into integer operators would run on the CPU, which alone has them.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # What fails is told in many lines, some on stdout, where rows may be, and is then tried on the CPU: see below.
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        preload()
        with contextlib.redirect_stdout(io.StringIO()):
            session = onnxruntime.InferenceSession(bundle.model_path, options, providers=providers)
    # onnxruntime's exceptions share no base of their own.
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise BundleError(
            f"{bundle.model_path}: onnxruntime {onnxruntime.__version__} cannot load it on {name} ({reason}); "
            "upgrade onnxruntime-gpu, or export the bundle again"
        ) from error
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
    asked, given = providers[0][0], session.get_providers()[0]
    if given != asked:
        lack = unloadable(name) or Lack("onnxruntime does not say why", "see `mdmf doctor`")
        raise RuntimeUnavailable(f"runtime {name!r}: asked for {asked}, got {given}: {lack.missing}; {lack.enable}")
    return session

"""ONNX Runtime on a GPU: its CUDA provider, and its TensorRT provider (extra: gpu).

Options: onnxruntime.ai/docs/execution-providers, "CUDA" and "NVIDIA - TensorRT". ONNX Runtime replaces a provider that
cannot be loaded by the CPU's, without an error. So a session is asked for the provider it got. The list that
get_available_providers() returns proves nothing.
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
from mdmf_deploy.bundle.manifest import INPUT
from mdmf_deploy.errors import BundleError, MdmfError, OutOfMemory, RuntimeUnavailable
from mdmf_deploy.files import cache_folder
from mdmf_deploy.hardware.gpu import probe
from mdmf_deploy.runtime.batches import BatchSlice, BatchSplitter, DeviceArray
from mdmf_deploy.runtime.building.flavours import TENSORRT, allows_tf32, dotted
from mdmf_deploy.runtime.building.plans import EngineKey, this_platform
from mdmf_deploy.runtime.building.profiles import DEFAULT, Profile, load_profile
from mdmf_deploy.runtime.needs import Missing, find_unloadable, preload, require

onnxruntime.disable_telemetry_events()  # as in ort.py

# Public, so that tests can run on the CPU.
DEVICE = "cuda"
CUDA_PROVIDER, TENSORRT_PROVIDER = "CUDAExecutionProvider", "TensorrtExecutionProvider"

_FLOAT = 4  # bytes
_MIB = 2**20
_WARNING, _FATAL = 2, 4
Options = dict[str, str]


class OrtGpuEngine:
    """One session with the bundle's graph on the first GPU.

    threads: without effect on a GPU.
    profile: a name, or a .toml file (runtime/building/profiles.py). The CUDA provider uses only its batch sizes.
    Raises RuntimeUnavailable without a driver, a GPU or the provider, or if the session would run elsewhere,
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
        crop = bundle.manifest.preprocessing.crop
        self._image = (3, crop, crop)
        self._signature = (bundle.manifest.model.pool**2, bundle.manifest.model.signature)
        self.environment = {
            "gpu": gpu.name,
            "driver": "CUDA {}.{}".format(*gpu.driver),
            "onnxruntime": onnxruntime.__version__,
            "profile": chosen.name,
        }
        providers = [(CUDA_PROVIDER, cuda_options(self.precision))]
        if tensorrt:
            # Importing it loads its shared libraries, which ONNX Runtime would not find by itself.
            version = str(TENSORRT.load().__version__)
            self.environment[TENSORRT.module] = version
            key = EngineKey(
                model=bundle.manifest.model_sha256,
                library="onnxruntime",
                version=f"{onnxruntime.__version__} {version}",
                compute_capability=dotted(gpu.compute_capability),
                gpu=gpu.name,
                profile=chosen.key,
                flags=(),
                platform=this_platform(),
            )
            providers.insert(0, (TENSORRT_PROVIDER, tensorrt_options(key, chosen, self._image)))
        self._session = _session(bundle, name, providers)
        self._output = self._session.get_outputs()[0].name
        self._lock = threading.Lock()
        self._kept: deque[onnxruntime.OrtValue] = deque(maxlen=3)
        self._splitter = BatchSplitter(chosen.batch, name)
        self._splitter.adapt(self, self._image)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._lock:
            signatures = self._run(images)
            result: NDArray[np.float32] = signatures.numpy()[: len(images)].copy()
        return result

    def on_device(self, images: NDArray[np.float32]) -> DeviceArray:
        """Extract signatures and leave them on the GPU: (B, N, d), valid until the next call."""
        with self._lock:
            signatures = self._run(images)
            # The session has waited for its stream, but a reduction may still read the last two results.
            self._kept.append(signatures)
            return DeviceArray(signatures.data_ptr(), (len(images), *self._signature), None, signatures)

    def close(self) -> None:
        del self._session
        self._kept.clear()

    def _run(self, images: NDArray[np.float32]) -> onnxruntime.OrtValue:
        count = len(images)
        rows = self._splitter.rows(count) if count else 0
        signatures = onnxruntime.OrtValue.ortvalue_from_shape_and_type((rows, *self._signature), np.float32, DEVICE, 0)
        for part in self._splitter.split(count):
            shape = (part.rows, *self._signature)
            address = signatures.data_ptr() + part.start * int(np.prod(self._signature)) * _FLOAT
            binding = self._session.io_binding()
            binding.bind_cpu_input(INPUT, self._padded(images, part))
            binding.bind_output(self._output, DEVICE, 0, np.float32, shape, address)
            try:
                self._session.run_with_iobinding(binding)
            # ONNX Runtime has no exception of its own for memory.
            except Exception as error:
                if "alloc" not in str(error):
                    raise
                reason = " ".join(str(error).split())
                remedy = f"take the profile latency, as --runtime {self.name}:latency, or close what else runs there"
                raise OutOfMemory(f"{self.environment['gpu']}: {reason}; {remedy}") from error
        return signatures

    def _padded(self, images: NDArray[np.float32], part: BatchSlice) -> NDArray[np.float32]:
        given = np.ascontiguousarray(images[part.start : part.stop])
        if len(given) == part.rows:
            return given
        padded = np.zeros((part.rows, *self._image), np.float32)
        padded[: len(given)] = given
        return padded


CudaEngine = functools.partial(OrtGpuEngine, name="cuda", tensorrt=False)
OrtTensorRtEngine = functools.partial(OrtGpuEngine, name="ort-tensorrt", tensorrt=True)


def cuda_options(precision: str) -> Options:
    """Return the CUDA provider's options for a graph of this precision."""
    return {
        "device_id": "0",
        "use_tf32": "1" if allows_tf32(precision) else "0",
        # An exhaustive search picks the kernel that was fastest that day, and another kernel gives other bits.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


def tensorrt_options(key: EngineKey, profile: Profile, image: tuple[int, ...]) -> Options:
    """Return the TensorRT provider's options.

    key: the engine's. Each key has a cache folder of its own, because the provider itself compares little more than
    the graph.
    image: the shape of one image, (3, S, S).
    No flag for a lower precision is set, so the network is strongly typed: the graph's own types decide.
    """
    folder = cache_folder("engines") / f"ort-{key.digest[:24]}"
    folder.mkdir(exist_ok=True)
    size = "x".join(map(str, image))
    shapes = {
        f"trt_profile_{which}_shapes": f"{INPUT}:{count}x{size}"
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
    # Only the CPU has the integer operators into which Q/DQ pairs would be fused.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # If a provider fails, ONNX Runtime prints many lines, some of them on stdout, where rows may be. Then it tries
    # the CPU, which is refused below.
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        preload()
        with contextlib.redirect_stdout(io.StringIO()), bundle.unchanged_model() as path:
            session = onnxruntime.InferenceSession(path, options, providers=providers)
    except MdmfError:
        raise
    # ONNX Runtime's exceptions have no base class of their own.
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
        found = find_unloadable(name) or Missing("onnxruntime gives no reason", "see `mdmf doctor`")
        raise RuntimeUnavailable(f"runtime {name!r}: asked for {asked}, got {given}: {found.missing}; {found.enable}")
    return session

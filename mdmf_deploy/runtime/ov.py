"""OpenVINO on the CPU (extra: openvino)."""

from __future__ import annotations

import threading
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import BundleError, RuntimeUnavailable, shortage
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.runtime import why_refused, without_telemetry

with without_telemetry():
    import openvino

_DEVICE = "CPU"


@cache
def _core() -> openvino.Core:
    """Return the process's one Core, which is never freed.

    The first thread that compiles gets a signal stack (sigaltstack) from the CPU plugin, and freeing the last Core
    frees that stack. If another thread did so, the next signal to the first one (Ctrl-C) would be a segmentation fault.
    """
    return openvino.Core()


class OpenVinoEngine:
    """The bundle's graph, compiled for the CPU. threads: None means every core of this process.

    All threads work on one inference at a time. That measured faster than two streams, also for large batches.
    Raises BundleError if the graph cannot be compiled, RuntimeUnavailable if it would run on another device or in
    another precision, or if `why_refused` has a reason.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        refused = why_refused(self.name, bundle.manifest.model.precision)
        if refused is not None:
            raise RuntimeUnavailable(f"runtime 'openvino': {refused}; use --runtime onnxruntime, or an fp32 bundle")
        options = {
            # By default it uses bf16 where the CPU has it. That changes scores, and is slower without AMX.
            "INFERENCE_PRECISION_HINT": openvino.Type.f32,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or cores(),
            # Two processes would pin their threads to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        core = _core()
        try:
            with bundle.unchanged_model() as path:
                model = core.read_model(path)
                compiled = core.compile_model(model, _DEVICE, options)
        except RuntimeError as error:
            if (lacking := shortage(error)) is not None:
                raise lacking from error
            reason = str(error).strip().splitlines()[-1]
            raise BundleError(
                f"{bundle.model_path}: openvino {openvino.__version__} cannot load it ({reason}); "
                "upgrade openvino, or export the bundle again"
            ) from error
        precision, devices = (compiled.get_property(key) for key in ("INFERENCE_PRECISION_HINT", "EXECUTION_DEVICES"))
        if precision != openvino.Type.f32 or devices != [_DEVICE]:
            raise RuntimeUnavailable(
                f"runtime 'openvino': asked for {_DEVICE} in f32, got {', '.join(devices)} in "
                f"{precision.get_type_name()}; see `mdmf doctor`"
            )
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()
        self.precision: str = bundle.manifest.model.precision

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._lock:
            self._request.infer({0: np.ascontiguousarray(images)}, share_inputs=True)
            # Copy: the next call overwrites the request's own memory.
            result: NDArray[np.float32] = self._request.get_output_tensor(0).data.copy()
        return result

    def close(self) -> None:
        del self._request

"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mdmf_deploy.bundle import Bundle


class OrtEngine:
    """One session over the bundle's graph, all of this process's cores unless told otherwise."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        # The affinity mask, not the host's core count: a container's share is what there is.
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            bundle.model_path, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self.precision = bundle.manifest.model.precision

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        (signatures,) = self._session.run(None, {self._input: images})
        result: NDArray[np.float32] = signatures
        return result

    def close(self) -> None:
        del self._session

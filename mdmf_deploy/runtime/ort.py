"""ONNX Runtime on the CPU (extra: cpu)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import BundleError, MdmfError, RuntimeUnavailable, install, shortage
from mdmf_deploy.hardware.host import cores, saturates_int8

# On Windows the environment variable has no effect (mdmf_deploy/__init__.py), and only this stops most events.
onnxruntime.disable_telemetry_events()

_PROVIDER = "CPUExecutionProvider"
# Earlier ones read weights from any file that a graph names, and through links.
_OLDEST = (1, 24, 1)


class OrtEngine:
    """One session with the bundle's graph. threads: None means every core of this process.

    Raises BundleError if the graph cannot be loaded, RuntimeUnavailable if it would not run on the CPU provider or if
    ONNX Runtime is too old, and OutOfMemory or OutOfThreads.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        if (old := outdated(onnxruntime)) is not None:
            raise RuntimeUnavailable(f"runtime 'onnxruntime': {old}; run: {install('cpu')}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Block instead of spinning: spinning takes a quarter more of the cores that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if saturates_int8():
            # Multiply u8 by u8, which no kernel saturates. Other CPUs are exact without this, and faster.
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            # Without its fallback, which would load the same provider again and print so on stdout.
            with bundle.unchanged_model() as path:
                self._session = onnxruntime.InferenceSession(path, options, providers=[_PROVIDER], enable_fallback=0)
        except MdmfError:
            raise
        # ONNX Runtime's exceptions (InvalidProtobuf, NotImplemented, ...) have no base class of their own.
        except Exception as error:
            if (lacking := shortage(error)) is not None:
                raise lacking from error
            reason = str(error).strip().splitlines()[0]
            raise BundleError(
                f"{bundle.model_path}: onnxruntime {onnxruntime.__version__} cannot load it ({reason}); "
                "upgrade onnxruntime, or export the bundle again"
            ) from error
        provider = self._session.get_providers()[0]
        if provider != _PROVIDER:
            raise RuntimeUnavailable(f"runtime 'onnxruntime': asked for {_PROVIDER}, got {provider}; see `mdmf doctor`")
        self._input = self._session.get_inputs()[0].name
        self.precision: str = bundle.manifest.model.precision

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        (signatures,) = self._session.run(None, {self._input: images})
        result: NDArray[np.float32] = signatures
        return result

    def close(self) -> None:
        del self._session


def outdated(library: Any) -> str | None:
    """Return why an imported build of ONNX Runtime is too old, or None."""
    found = str(getattr(library, "__version__", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if not numbers or numbers >= _OLDEST:
        return None
    return f"onnxruntime {found} is too old, expected {'.'.join(map(str, _OLDEST))} or newer"

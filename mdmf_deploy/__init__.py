"""mdmf-deploy: from a trained MDMF detector to the fastest honest service its user can run."""

from __future__ import annotations

import os

# ONNX Runtime reads it once, when it is imported. It then writes no device id and reports nothing (docs/privacy.md).
# Every module of the package is imported after this line, and child processes inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"

TYPE_CHECKING = False  # for type checkers as in typing, whose import would take 20 ms of every start
if TYPE_CHECKING:
    from typing import Any

    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.detection.detector import Detector, DetectorSpec
    from mdmf_deploy.detection.outputs import rows_to_arrow
    from mdmf_deploy.detection.rows import Row
    from mdmf_deploy.detection.sources import Named
    from mdmf_deploy.errors import MdmfError

_PUBLIC = {
    "Bundle": "mdmf_deploy.bundle.bundle",
    "Detector": "mdmf_deploy.detection.detector",
    "DetectorSpec": "mdmf_deploy.detection.detector",
    "MdmfError": "mdmf_deploy.errors",
    "Named": "mdmf_deploy.detection.sources",
    "Row": "mdmf_deploy.detection.rows",
    "rows_to_arrow": "mdmf_deploy.detection.outputs",
}

__all__ = ["Bundle", "Detector", "DetectorSpec", "MdmfError", "Named", "Row", "__version__", "rows_to_arrow"]


def __getattr__(name: str) -> Any:
    # Imported late, so that `mdmf --help` does not pay for NumPy.
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mdmf_deploy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

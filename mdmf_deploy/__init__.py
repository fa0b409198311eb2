"""mdmf-deploy: from a trained MDMF detector to the fastest honest service its user can run."""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # for type checkers as in typing, whose import would take 20 ms of every start
if TYPE_CHECKING:
    from typing import Any

    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.detection.detector import Detector
    from mdmf_deploy.detection.rows import Row
    from mdmf_deploy.errors import MdmfError

_PUBLIC = {
    "Bundle": "mdmf_deploy.bundle.bundle",
    "Detector": "mdmf_deploy.detection.detector",
    "MdmfError": "mdmf_deploy.errors",
    "Row": "mdmf_deploy.detection.rows",
}

__all__ = ["Bundle", "Detector", "MdmfError", "Row", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported late, so that `mdmf --help` does not pay for NumPy.
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mdmf_deploy' has no attribute {name!r}")

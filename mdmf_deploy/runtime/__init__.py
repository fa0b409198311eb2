"""Runtimes: whatever turns images into signatures, behind one protocol."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import RuntimeUnavailable

if TYPE_CHECKING:
    from mdmf_deploy.bundle import Bundle


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


# name -> module, class, extra that installs it.  Each class is built as Class(bundle, threads=None).
ENGINES: dict[str, tuple[str, str, str]] = {
    "onnxruntime": ("mdmf_deploy.runtime.ort", "OrtEngine", "cpu"),
}


def open_engine(name: str, bundle: Bundle, threads: int | None = None) -> Engine:
    """The engine `name` ("auto": the first that is installed) for this bundle; threads: None means all cores.

    Raises RuntimeUnavailable if the runtime is unknown or not installed; nothing is ever silently replaced.
    """
    if name == "auto":
        return _open_auto(bundle, threads)
    if name not in ENGINES:
        raise RuntimeUnavailable(f"runtime {name!r} is not known; choose auto or one of {', '.join(ENGINES)}")
    module, class_name, extra = ENGINES[name]
    try:
        engine: Engine = getattr(importlib.import_module(module), class_name)(bundle, threads=threads)
    except ImportError as error:
        raise RuntimeUnavailable(
            f"runtime {name!r} needs {error.name}; run: pip install 'mdmf-deploy[{extra}]'"
        ) from error
    return engine


def _open_auto(bundle: Bundle, threads: int | None) -> Engine:
    missing: list[str] = []
    for name in ENGINES:
        try:
            engine = open_engine(name, bundle, threads)
        except RuntimeUnavailable as error:
            missing.append(str(error))
            continue
        why = "; ".join(missing) if missing else "the first of the installed runtimes"
        print(f"mdmf: runtime {name} ({why})", file=sys.stderr)
        return engine
    raise RuntimeUnavailable("no runtime is installed; run: pip install 'mdmf-deploy[cpu]'")

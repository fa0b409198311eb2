"""TensorRT and TensorRT-RTX: two libraries with one API, and where they differ.

TensorRT, 10.13 to 11, times kernels on the GPU it builds for.  TensorRT-RTX, for GeForce and RTX cards, leaves that to
the card the engine is loaded on, so it builds with no GPU, for any compute capability that it knows.  Version 11 and
RTX are strongly typed always, 10 when it is told: precision is then that of the ONNX graph's own types, no other.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mdmf_deploy.errors import UsageError

if TYPE_CHECKING:
    import tensorrt as trt

OLDEST = (10, 13)
# An image's result must not depend on its place in a batch.
_ALIKE = "DISTRIBUTIVE_INDEPENDENCE"


@dataclass(frozen=True, slots=True)
class Flavour:
    """runtime: its name in mdmf_deploy.runtime.ENGINES.  module: to import.  extra: what installs it.

    portable: plans are for any GPU of their compute capability, and are built without one.
    """

    runtime: str
    module: str
    extra: str
    portable: bool

    def load(self) -> Any:
        """The library.  Raises ImportError."""
        return importlib.import_module(self.module)


TENSORRT = Flavour("tensorrt", "tensorrt", "gpu", portable=False)
RTX = Flavour("rtx", "tensorrt_rtx", "rtx", portable=True)
FLAVOURS = {flavour.runtime: flavour for flavour in (TENSORRT, RTX)}


def version_of(library: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in str(library.__version__).split(".") if part.isdigit())


def flags(flavour: Flavour, library: Any, precision: str) -> tuple[str, ...]:
    """How the builder is told to build, as it stands in an engine's key."""
    typed = ["STRONGLY_TYPED"] if _must_be_told(flavour, library) else []
    return (*typed, *(["TF32"] if allows_tf32(precision) else []), _ALIKE)


def allows_tf32(precision: str) -> bool:
    """Whether float32 products may cut their operands to the 11 significant bits of TF32, for tensor cores.

    In an fp16 graph they do it for nothing: its only such products are attention scores, of float16 operands
    (mdmf_deploy.tasks.export.precision).  Elsewhere it would not be the precision that the bundle names.
    """
    return precision == "fp16"


def new_network(flavour: Flavour, library: Any, builder: trt.Builder) -> Any:
    """An empty, strongly typed network."""
    typed = library.NetworkDefinitionCreationFlag.STRONGLY_TYPED if _must_be_told(flavour, library) else None
    return builder.create_network(0 if typed is None else 1 << int(typed))


def set_flags(library: Any, config: trt.IBuilderConfig, precision: str) -> None:
    if not allows_tf32(precision):
        config.clear_flag(library.BuilderFlag.TF32)
    config.set_flag(library.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE)


def capability(text: str) -> tuple[int, int]:
    """(8, 9) of "8.9" or "89".  Raises UsageError."""
    major, _, minor = text.partition(".") if "." in text else (text[:-1], ".", text[-1:])
    if not (major.isdigit() and minor.isdigit()):
        raise UsageError(f"compute capability {text!r} is none; give one as 8.9 (developer.nvidia.com/cuda-gpus)")
    return int(major), int(minor)


def dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _must_be_told(flavour: Flavour, library: Any) -> bool:
    return flavour is TENSORRT and version_of(library) < (11,)

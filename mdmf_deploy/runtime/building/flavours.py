"""TensorRT and TensorRT-RTX: two libraries with one API, and how they differ.

TensorRT (10.13 to 11) times kernels on the GPU it builds for. TensorRT-RTX, for GeForce and RTX cards, leaves that to
the card that loads the engine. So it builds without a GPU, for any compute capability it knows. Version 11 and RTX are
always strongly typed, version 10 on request: the types in the ONNX graph alone decide the precision.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mdmf_deploy.errors import UsageError

if TYPE_CHECKING:
    import tensorrt as trt

OLDEST = (10, 13)
# With this flag an image's result does not depend on its place in a batch.
_ALIKE = "DISTRIBUTIVE_INDEPENDENCE"


@dataclass(frozen=True, slots=True)
class Flavour:
    """One of the two libraries.

    runtime: its name in mdmf_deploy.runtime.ENGINES.
    module: the module to import.
    extra: the extra that installs it.
    portable: whether a plan fits every GPU of its compute capability and is built without one.
    """

    runtime: str
    module: str
    extra: str
    portable: bool

    def load(self) -> Any:
        """Import the library. Raises ImportError."""
        return importlib.import_module(self.module)


TENSORRT = Flavour("tensorrt", "tensorrt", "gpu", portable=False)
RTX = Flavour("rtx", "tensorrt_rtx", "rtx", portable=True)
FLAVOURS = {flavour.runtime: flavour for flavour in (TENSORRT, RTX)}


def version_of(library: Any) -> tuple[int, ...]:
    """Return the version as numbers: (10, 16, 1, 11)."""
    return tuple(int(part) for part in str(library.__version__).split(".") if part.isdigit())


def builder_flags(flavour: Flavour, library: Any, precision: str) -> tuple[str, ...]:
    """Return the names of the builder's flags, as an engine's key records them."""
    typed = ["STRONGLY_TYPED"] if _asks_for_types(flavour, library) else []
    return (*typed, *(["TF32"] if allows_tf32(precision) else []), _ALIKE)


def allows_tf32(precision: str) -> bool:
    """Return whether float32 products may cut their operands to TF32's 11 significant bits, to use tensor cores.

    In an fp16 graph this loses nothing: its only float32 products are attention scores, whose operands are float16
    (mdmf_deploy.tasks.export.precision). In any other graph it would not be the precision that the bundle names.
    """
    return precision == "fp16"


def new_network(flavour: Flavour, library: Any, builder: trt.Builder) -> Any:
    """Make an empty, strongly typed network."""
    typed = library.NetworkDefinitionCreationFlag.STRONGLY_TYPED if _asks_for_types(flavour, library) else None
    return builder.create_network(0 if typed is None else 1 << int(typed))


def set_flags(library: Any, config: trt.IBuilderConfig, precision: str) -> None:
    """Set the builder's flags for a bundle of this precision."""
    if not allows_tf32(precision):
        config.clear_flag(library.BuilderFlag.TF32)
    config.set_flag(library.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE)


def parse_capability(text: str) -> tuple[int, int]:
    """Parse a compute capability: (8, 9) from "8.9" or "89". Raises UsageError."""
    major, _, minor = text.partition(".") if "." in text else (text[:-1], ".", text[-1:])
    if not (major.isdigit() and minor.isdigit()):
        raise UsageError(f"compute capability {text!r} is not valid; give one as 8.9 (developer.nvidia.com/cuda-gpus)")
    return int(major), int(minor)


def dotted(capability: tuple[int, int]) -> str:
    """Return "8.9" for (8, 9)."""
    return f"{capability[0]}.{capability[1]}"


def _asks_for_types(flavour: Flavour, library: Any) -> bool:
    """Return whether strong typing is a flag here. TensorRT 11 and RTX know nothing else."""
    return flavour is TENSORRT and version_of(library) < (11,)

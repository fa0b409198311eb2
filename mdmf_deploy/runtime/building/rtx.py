"""The part of the API that only TensorRT-RTX has: an engine's compute capability. TensorRT takes it from its GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mdmf_deploy.errors import UsageError
from mdmf_deploy.runtime.building.flavours import dotted

if TYPE_CHECKING:
    import tensorrt_rtx


def capabilities(library: Any) -> list[tuple[int, int]]:
    """Return the compute capabilities that this version of the library builds for."""
    names = [name for name in library.ComputeCapability.__members__ if name.startswith("SM")]
    return [(int(name[2:-1]), int(name[-1])) for name in names]


def set_capability(library: Any, config: tensorrt_rtx.IBuilderConfig, capability: tuple[int, int]) -> None:
    """Build for this compute capability. Raises UsageError if this version of the library does not know it."""
    known = capabilities(library)
    if capability not in known:
        raise UsageError(
            f"TensorRT-RTX {library.__version__} does not build for compute capability {dotted(capability)}; it knows "
            f"{', '.join(map(dotted, known))}; for data-centre GPUs use the tensorrt flavour"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(library.ComputeCapability.__members__[f"SM{capability[0]}{capability[1]}"], 0)

"""Writing a rewritten graph."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto

from mdmf_deploy.bundle.manifest import INLINE_BYTES
from mdmf_deploy.bundle.recipe import Precision


def save(model: ModelProto, destination: Path, precision: Precision) -> Path:
    """Write and check; large weights go to one file beside it, as for the fp32 graph."""
    import onnx_ir

    # The converters append nodes at the graph's end, where the checker does not allow them.
    sorted_model = onnx_ir.from_proto(model)
    sorted_model.graph.sort()
    sorted_model.metadata_props["mdmf.precision"] = precision
    model = onnx_ir.to_proto(sorted_model)
    external = destination.with_name(destination.name + ".data")
    external.unlink(missing_ok=True)
    large = model.ByteSize() > INLINE_BYTES
    onnx.save(model, destination, save_as_external_data=large, location=external.name)
    onnx.checker.check_model(destination, full_check=True)
    return destination

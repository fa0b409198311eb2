"""The precision ladder's lower rungs: an fp32 graph rewritten as fp16, or as int8 with explicit Q/DQ.

Precision lives in the graph, so every runtime runs the same numbers (DESIGN.md, "Facts", GPU).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from mdmf_deploy.recipe import Precision
from mdmf_deploy.tracing import INLINE_BYTES, INPUT, POOLING

# What is known to overflow or drift in half precision; its inputs are cast up, its outputs down again.
_KEPT_IN_FP32 = ["LayerNormalization", "Softmax", "ReduceMean", "Pow", "Erf"]


def to_fp16(fp32: Path, destination: Path) -> Path:
    """Weights and most operators in float16; LayerNorm, Softmax and the error function in GELU stay float32.

    Input and output stay float32, so that nothing around the model changes.
    """
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    with _quiet():
        model = convert_float_to_float16(
            onnx.load(fp32),
            keep_io_types=True,
            disable_shape_infer=True,  # tracing has done it, and above 2 GB the converter cannot
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEPT_IN_FP32],
        )
    # The converter leaves wrong types there for what it kept in float32; runtimes infer their own.
    del model.graph.value_info[:]
    return _save(model, destination, "fp16")


def to_int8(fp32: Path, destination: Path, images: NDArray[np.float32]) -> Path:
    """Static symmetric Q/DQ around the backbone's matrix products with constant weights, one scale a channel.

    images: (B, 3, crop, crop) real ones, to take activation ranges from.
    All zero points are 0 (TensorRT takes no other).  Patch embedding, attention scores and the PFS head stay float32:
    they are a few percent of the work, and a signature feels every error in them.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    graph = onnx.load(fp32, load_external_data=False).graph
    head = next(place for place, node in enumerate(graph.node) if POOLING in node.input)
    constants = {tensor.name for tensor in graph.initializer}
    # onnxruntime's option for constant weights alone (MatMulConstBOnly) is not heeded for Q/DQ.
    left_alone = [
        node.name
        for place, node in enumerate(graph.node)
        if node.op_type == "MatMul" and (place >= head or node.input[1] not in constants)
    ]
    with _quiet():
        quantize_static(
            fp32,
            destination,
            _Reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=left_alone,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=fp32.with_name(fp32.name + ".data").exists(),
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                # A product stays in float32 for its bias and what follows: half the rounding, and fewer nodes.
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
            },
        )
    return _save(onnx.load(destination), destination, "int8")


class _Reader:
    """What onnxruntime calls a CalibrationDataReader: one feed a call, then None."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: image[None]}


def _save(model: ModelProto, destination: Path, precision: Precision) -> Path:
    """Write and check; large weights go to one file beside it, as for the fp32 graph."""
    import onnx
    import onnx_ir

    # The converters append casts at the graph's end, where the checker does not allow them.
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


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's tools log advice to the root logger; none of it is for the user."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)

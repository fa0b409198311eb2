"""Lower an fp32 graph to float16, and save a lowered graph in the form that a bundle takes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mdmf_deploy.bundle.manifest import INLINE_BYTES
from mdmf_deploy.bundle.recipe import Precision
from mdmf_deploy.errors import QuantisationError

if TYPE_CHECKING:
    from onnx import ModelProto

# These operators overflow or drift in float16. Their inputs are cast up and their outputs down again.
_KEPT_IN_FP32 = ["LayerNormalization", "Softmax", "ReduceMean", "Pow", "Erf"]
# Operators allowed between a product of queries and keys and its softmax.
_BETWEEN = ("Add", "Div", "Mul", "Reshape", "Transpose", "Where")
_SMALL_TENSOR = 1024  # bytes; smaller ones stay in the graph


def to_fp16(fp32: Path, destination: Path) -> Path:
    """Write the graph with float16 weights and operators to destination, and return destination.

    Attention scores, Softmax, LayerNorm and GELU's error function stay in float32. So does the division of signatures
    by their lengths, whose least value float16 cannot hold. So do input and output, so that nothing around the model
    changes.
    Scores are products of float16 queries and keys, accumulated in float32. They are rounded to float16 once before
    the float32 softmax. Without that rounding TensorRT-RTX builds no single kernel of an attention, and nothing at
    all for Turing. The gate decides whether verdicts survive it.
    Raises QuantisationError if the input of a softmax is not such a product.
    """
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    exact = onnx.load(fp32)
    with silence():
        model = convert_float_to_float16(
            exact,
            keep_io_types=True,
            disable_shape_infer=True,  # tracing has done it, and above 2 GB the converter cannot
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEPT_IN_FP32],
            node_block_list=[*_score_nodes(exact), *_length_nodes(exact)],
        )
    # The converter notes wrong types for the values it kept in float32. Runtimes infer their own.
    del model.graph.value_info[:]
    return save_graph(model, destination, "fp16")


def _score_nodes(model: ModelProto) -> Iterator[str]:
    """Yield the names of the nodes from each product of queries and keys to its softmax, the product included."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    for softmax in (node for node in model.graph.node if node.op_type == "Softmax"):
        node = made_by.get(softmax.input[0])
        while node is not None and node.op_type in _BETWEEN:
            yield node.name
            node = made_by.get(node.input[0])
        if node is None or node.op_type != "MatMul":
            raise QuantisationError(
                f"fp16: the input of {softmax.name} is not a product of queries and keys; export with --precision fp32"
            )
        yield node.name


def _length_nodes(model: ModelProto) -> Iterator[str]:
    """Yield the names of the nodes that take signatures' lengths, and of all that use them."""
    used: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "ReduceL2" or used.intersection(node.input):
            used.update(node.output)
            yield node.name


def save_graph(model: ModelProto, destination: Path, precision: Precision) -> Path:
    """Write a lowered graph, sorted, checked and marked with its precision, and return destination.

    Weights above 1.9 GB go to one file beside it, as for the fp32 graph.
    """
    import onnx
    import onnx_ir

    # The converters append nodes at the graph's end, where the checker does not allow them.
    sorted_model = onnx_ir.from_proto(model)
    sorted_model.graph.sort()
    sorted_model.metadata_props["mdmf.precision"] = precision
    model = onnx_ir.to_proto(sorted_model)
    external = destination.with_name(destination.name + ".data")
    external.unlink(missing_ok=True)
    if model.ByteSize() > INLINE_BYTES:
        move_weights(model, external.name, _SMALL_TENSOR)
    onnx.save(model, destination)
    onnx.checker.check_model(destination, full_check=True)
    return destination


def move_weights(model: ModelProto, file_name: str, smallest: int) -> None:
    """Let onnx.save write the weights of at least `smallest` bytes to a file beside the graph, and not into it.

    onnx.save has an option for this, but that draws an unused name by uuid1, which opens a socket to read the network
    card's address.
    """
    from onnx.external_data_helper import set_external_data

    for tensor in model.graph.initializer:
        if tensor.HasField("raw_data") and len(tensor.raw_data) >= smallest:
            set_external_data(tensor, file_name)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppress log records below an error, everything printed to stdout, and all warnings.

    The tools that rewrite graphs log advice, draw progress bars on stdout and warn about their own internals.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

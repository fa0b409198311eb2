"""float16 weights and operators, but for what is known to overflow or drift."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mdmf_deploy.errors import QuantisationError
from mdmf_deploy.tasks.export.int8 import silence
from mdmf_deploy.tasks.export.save import save

if TYPE_CHECKING:
    from onnx import ModelProto

# Its inputs are cast up, its outputs down again.
_KEPT_IN_FP32 = ["LayerNormalization", "Softmax", "ReduceMean", "Pow", "Erf"]
# What may stand between a product of queries and keys and its softmax.
_BETWEEN = ("Add", "Div", "Mul", "Reshape", "Transpose", "Where")


def to_fp16(fp32: Path, destination: Path) -> Path:
    """Weights and most operators in float16; attention scores, Softmax, LayerNorm and GELU's error function float32.

    Scores are products of float16 queries and keys, added up in float32.  Before the float32 softmax they are rounded
    to float16 once: without that TensorRT-RTX makes no single kernel of an attention, and nothing at all for Turing.
    Whether verdicts bear it is for the gate to say.
    Input and output stay float32, so that nothing around the model changes.
    Raises QuantisationError if a softmax is not over such a product.
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
            node_block_list=list(_score_nodes(exact)),
        )
    # The converter leaves wrong types there for what it kept in float32; runtimes infer their own.
    del model.graph.value_info[:]
    return save(model, destination, "fp16")


def _score_nodes(model: ModelProto) -> Iterator[str]:
    """Names of the nodes from each product of queries and keys to its softmax, the product included."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    for softmax in (node for node in model.graph.node if node.op_type == "Softmax"):
        node = made_by.get(softmax.input[0])
        while node is not None and node.op_type in _BETWEEN:
            yield node.name
            node = made_by.get(node.input[0])
        if node is None or node.op_type != "MatMul":
            raise QuantisationError(f"fp16: {softmax.name} is over no product; export with --precision fp32")
        yield node.name

"""float16 weights and operators, but for what is known to overflow or drift."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mdmf_deploy.errors import QuantisationError
from mdmf_deploy.quantising.saving import save
from mdmf_deploy.quantising.silence import silence

if TYPE_CHECKING:
    from onnx import ModelProto

# Its inputs are cast up, its outputs down again.
_KEPT_IN_FP32 = ["LayerNormalization", "Softmax", "ReduceMean", "Pow", "Erf"]
# What may stand between a product of queries and keys and its softmax.
_BETWEEN = ("Add", "Div", "Mul", "Reshape", "Transpose", "Where")


def to_fp16(fp32: Path, destination: Path) -> Path:
    """Weights and most operators in float16; attention scores, Softmax, LayerNorm and GELU's error function float32.

    Scores are products of float16 queries and keys, added up in float32 and neither rounded nor cut off before the
    softmax.  That costs compilers their one kernel for a whole attention, which wants scores in float16.
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
    _join_casts(model)
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


def _join_casts(model: ModelProto) -> None:
    """Between two nodes in float32 the converter casts down and up again, which rounds what was to stay exact."""
    from onnx import TensorProto

    def casts(to: int) -> dict[str, str]:
        found = (node for node in model.graph.node if node.op_type == "Cast" and node.attribute[0].i == to)
        return {node.output[0]: node.input[0] for node in found}

    down, up = casts(TensorProto.FLOAT16), casts(TensorProto.FLOAT)
    exact = {output: down[source] for output, source in up.items() if source in down}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = exact.get(name, name)
    used = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    # An up of a down first, then the down that nothing else takes.
    for outputs in (exact, down):
        for node in [node for node in model.graph.node if node.output[0] in outputs and node.output[0] not in used]:
            model.graph.node.remove(node)
        used = {name for node in model.graph.node for name in node.input} | {out.name for out in model.graph.output}

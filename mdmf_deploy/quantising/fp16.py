"""float16 weights and operators, but for what is known to overflow or drift."""

from __future__ import annotations

from pathlib import Path

from mdmf_deploy.quantising.saving import save
from mdmf_deploy.quantising.silence import silence

# Its inputs are cast up, its outputs down again.
_KEPT_IN_FP32 = ["LayerNormalization", "Softmax", "ReduceMean", "Pow", "Erf"]


def to_fp16(fp32: Path, destination: Path) -> Path:
    """Weights and most operators in float16; LayerNorm, Softmax and the error function in GELU stay float32.

    Input and output stay float32, so that nothing around the model changes.
    """
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    with silence():
        model = convert_float_to_float16(
            onnx.load(fp32),
            keep_io_types=True,
            disable_shape_infer=True,  # tracing has done it, and above 2 GB the converter cannot
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEPT_IN_FP32],
        )
    # The converter leaves wrong types there for what it kept in float32; runtimes infer their own.
    del model.graph.value_info[:]
    return save(model, destination, "fp16")

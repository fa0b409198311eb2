"""int8 by NNCF: one graph with symmetric Q/DQ pairs, which ONNX Runtime, OpenVINO and TensorRT all run."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from mdmf_deploy.bundle.manifest import INPUT
from mdmf_deploy.errors import QuantisationError, RuntimeUnavailable
from mdmf_deploy.runtime import without_telemetry

# NNCF's own choices are 0.95, and the mean of the images' extremes, which an image unlike most exceeds: its score then
# moves far more than the others'.  On the starter's held-back images these halve the worst change.
_SMOOTHING = 0.8


def quantise(fp32: Path, images: NDArray[np.float32]) -> ModelProto:
    """Every product that NNCF quantises in a transformer: weights a scale a channel, activations one scale each.

    fp32: opset 18 or newer, the batch dynamic; weights may lie in a file beside it.
    images: (B, 3, crop, crop) real ones, to take activation ranges from.
    Activations' outliers are moved into the weights (Xiao et al., SmoothQuant, ICML 2023), ranges span all that was
    seen, and biases are corrected for the mean error they see.
    Raises RuntimeUnavailable without NNCF, QuantisationError if a zero point is not 0 (TensorRT takes no other).
    """
    try:
        nncf = import_nncf()
    except ImportError as error:
        raise RuntimeUnavailable(f"int8 needs {error.name}; run: pip install 'mdmf-deploy[export]'") from error
    external = fp32.with_name(fp32.name + ".data").exists()
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet
    advanced = nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges.MINMAX)
    advanced.smooth_quant_alphas.matmul = _SMOOTHING
    if external:
        advanced.backend_params["external_data_dir"] = str(fp32.parent.resolve())
    with silence():
        model: ModelProto = nncf.quantize(
            onnx.load(fp32, load_external_data=not external),
            nncf.Dataset([image[None] for image in images], lambda image: {INPUT: image}),
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.PERFORMANCE,
            advanced_parameters=advanced,
        )
    check_symmetric(model)
    return model


def check_symmetric(model: ModelProto) -> None:
    """Raise QuantisationError unless every Q/DQ node's zero point is a constant int8 0."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero_point = constants.get(node.input[2])
            values = None if zero_point is None else numpy_helper.to_array(zero_point)
            if values is None or values.dtype != np.int8 or values.any():
                raise QuantisationError(
                    f"int8: the zero point of {node.name} is not 0; expected a symmetric graph, as TensorRT "
                    "wants it; export with --precision fp32"
                )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing below an error is logged, nothing is printed, no warning is shown."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def import_nncf() -> ModuleType:
    """NNCF, which otherwise reports its use over the network, and makes its logger class everybody's.

    Raises ImportError if it is not installed.
    """
    logger_class = logging.getLoggerClass()
    try:
        with silence(), without_telemetry():
            import nncf
            import nncf.onnx.quantization.quantize_model
            import nncf.quantization.range_estimator
    finally:
        logging.setLoggerClass(logger_class)
    module: ModuleType = nncf
    return module

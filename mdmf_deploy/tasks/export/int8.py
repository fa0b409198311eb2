"""Quantise an fp32 graph to int8 with NNCF, and put any of its layers back to fp32.

NNCF makes one graph with symmetric Q/DQ pairs, which ONNX Runtime, OpenVINO and TensorRT all run. Quantising leaves
every node of the fp32 graph in place, with its name and its outputs. Only inputs change: a Q/DQ pair, a smoothed
activation, a corrected bias. So a layer is restored by giving it, and the node that adds its bias, their fp32 inputs
back, and by dropping everything that is no longer used.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from mdmf_deploy.bundle.manifest import INPUT
from mdmf_deploy.errors import QuantisationError, RuntimeUnavailable, install
from mdmf_deploy.runtime import without_telemetry
from mdmf_deploy.tasks.export.precision import move_weights, save_graph, silence

# NNCF's defaults are 0.95, and ranges from the mean of the images' extremes. An unusual image exceeds such a range, and
# its score then moves far more than the others'. On the starter's held-back images, 0.8 and ranges from the extremes
# themselves halve the worst change.
_SMOOTHING = 0.8
_PRODUCTS = ("MatMul", "Gemm", "Conv")
_WEIGHTS = "weights"
_SUFFIX = ".int8"


def quantise(fp32: Path, images: NDArray[np.float32]) -> ModelProto:
    """Return the graph with every product quantised that NNCF quantises in a transformer.

    Weights have one scale per channel, activations one scale per tensor.
    fp32: opset 18 or newer, with a dynamic batch. Weights may lie in a file beside it.
    images: (B, 3, crop, crop) of real photographs, to take activation ranges from.
    Outliers among activations are moved into the weights (Xiao et al., SmoothQuant, ICML 2023). Ranges span every value
    seen. Biases are corrected for the mean error they cause.
    Raises RuntimeUnavailable without NNCF, and QuantisationError if a zero point is not 0 (TensorRT takes no other).
    """
    try:
        nncf = import_nncf()
    except ImportError as error:
        raise RuntimeUnavailable(f"int8 needs {error.name}; run: {install('export')}") from error
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
    make_signed(model)
    check_symmetric(model)
    return model


def make_signed(model: ModelProto) -> None:
    """Turn uint8 pairs with a zero point of 0 into int8 ones of the same range.

    NNCF chooses uint8 for values that are never negative, as after ReLU. TensorRT does not take it.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    unsigned = {name for name, tensor in constants.items() if tensor.data_type == TensorProto.UINT8}
    unsigned = {name for name in unsigned if not numpy_helper.to_array(constants[name]).any()}
    pairs = [
        node
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and unsigned.intersection(node.input[2:])
    ]
    for name in {node.input[1] for node in pairs}:
        scale = numpy_helper.to_array(constants[name])
        constants[name].CopyFrom(numpy_helper.from_array(np.asarray(scale * 255 / 127, scale.dtype), name))
    for name in {node.input[2] for node in pairs}:
        constants[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constants[name]).astype(np.int8), name))
    # Runtimes infer the types of values again.
    made = {output for node in pairs for output in node.output}
    for value in [value for value in model.graph.value_info if value.name in made]:
        model.graph.value_info.remove(value)


def check_symmetric(model: ModelProto) -> None:
    """Raise QuantisationError unless the zero point of every Q/DQ node is a constant int8 0."""
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


def import_nncf() -> ModuleType:
    """Import NNCF without the reports it sends over the network, and keep its logger class from becoming the default.

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


class Restorable:
    """An fp32 graph and its quantised twin, as one pool of nodes and weights to build variants from.

    The weights of both graphs are written once, to a file that every variant refers to. A variant therefore costs only
    a few hundred kilobytes.
    layers: readable names of the quantised layers, in the order in which the graph computes them.
    folder: an empty folder, for the weights and the variants.
    Raises QuantisationError if the twin differs from the fp32 graph in more than its inputs.
    """

    def __init__(self, fp32: Path, int8: ModelProto, folder: Path) -> None:
        original = onnx.load(fp32)
        self._folder = folder
        self._pool = _merge(original, int8)
        self._before = {node.name: node for node in original.graph.node}
        self._owners = _owners(self._before, self._pool.graph, fp32)
        self.layers: tuple[str, ...] = tuple(dict.fromkeys(name for name in self._owners.values() if name))
        move_weights(self._pool, f"{_WEIGHTS}.data", smallest=4096)
        onnx.save(self._pool, folder / _WEIGHTS)
        self._pool = onnx.load(folder / _WEIGHTS, load_external_data=False)

    def variant(self, kept: Collection[str], name: str) -> Path:
        """Write the graph with the kept layers in fp32 and all others in int8 to the file `name` in the folder."""
        path = self._folder / name
        onnx.save(self._model(kept), path)
        return path

    def save(self, kept: Collection[str], destination: Path) -> Path:
        """Write the same graph for a bundle: with its own weights, sorted and checked."""
        return save_graph(onnx.load(self.variant(kept, "final")), destination, "int8")

    def _model(self, kept: Collection[str]) -> ModelProto:
        model = ModelProto()
        model.CopyFrom(self._pool)
        for node in model.graph.node:
            owner = self._owners.get(node.name, node.name)
            if owner is None or owner in kept:
                node.input[:] = self._before[node.name].input
        _drop_unused(model.graph)
        return model


def _merge(fp32: ModelProto, int8: ModelProto) -> ModelProto:
    """Return the quantised graph with the fp32 weights added. Where the two differ under one name, rename int8's."""
    merged = ModelProto()
    merged.CopyFrom(int8)
    before = {tensor.name: tensor for tensor in fp32.graph.initializer}
    changed = {
        tensor.name
        for tensor in merged.graph.initializer
        if tensor.name in before and not _same(tensor, before[tensor.name])
    }
    for tensor in merged.graph.initializer:
        if tensor.name in changed:
            tensor.name += _SUFFIX
    for node in merged.graph.node:
        node.input[:] = [name + _SUFFIX if name in changed else name for name in node.input]
    present = {tensor.name for tensor in merged.graph.initializer}
    merged.graph.initializer.extend(tensor for name, tensor in before.items() if name not in present)
    # NNCF drops the shapes that tracing found. Without them ONNX Runtime fuses less and gives other bits.
    del merged.graph.value_info[:]
    merged.graph.value_info.extend(fp32.graph.value_info)
    return merged


def _same(a: TensorProto, b: TensorProto) -> bool:
    return a.data_type == b.data_type and numpy_helper.to_array(a).tobytes() == numpy_helper.to_array(b).tobytes()


def _owners(before: Mapping[str, NodeProto], graph: GraphProto, fp32: Path) -> dict[str, str | None]:
    """Map each changed node to the layer it is restored with.

    A node that belongs to no product maps to None, and is always restored.
    """
    missing = before.keys() - {node.name for node in graph.node}
    moved = [
        node.name for node in graph.node if node.name in before and list(node.output) != list(before[node.name].output)
    ]
    if missing or moved:
        raise QuantisationError(
            f"{fp32}: quantising changed {sorted([*missing, *moved])[0]}, and it can no longer be restored to fp32; "
            "export with --precision fp32"
        )
    names = _layer_names(list(before.values()))
    made_by = {output: node.name for node in before.values() for output in node.output}
    owners: dict[str, str | None] = {}
    for node in graph.node:
        if node.name not in before or list(node.input) == list(before[node.name].input):
            continue
        if node.op_type in _PRODUCTS:
            owners[node.name] = names[node.name]
        else:
            layers = [made_by.get(name, "") for name in before[node.name].input]
            owners[node.name] = next((names[name] for name in layers if name in owners and name in names), None)
    return owners


def _layer_names(nodes: list[NodeProto]) -> dict[str, str]:
    """Map each product's node to the module it comes from ("blocks.3.mlp.fc1"), found by its parameter or its bias."""
    users: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    names: dict[str, str] = {}
    last = ""
    for node in nodes:
        if node.op_type not in _PRODUCTS:
            continue
        following = users.get(node.output[0], [])
        parameters = [name for user in (node, *following) for name in user.input]
        module = next((name.rpartition(".")[0] for name in parameters if name.startswith(("backbone.", "head."))), None)
        if module is None:
            scores = any(user.op_type == "Softmax" for user in following)
            module = f"{last.rpartition('.')[0]}.{'scores' if scores else node.name}"
        last = module
        name = module.removeprefix("backbone.")
        names[node.name] = name if name not in names.values() else f"{name} ({node.name})"
    return names


def _drop_unused(graph: GraphProto) -> None:
    """Remove the nodes, weights and shapes that no output needs. Nodes may stand in any order."""
    made_by = {output: node for node in graph.node for output in node.output}
    wanted, used = [output.name for output in graph.output], set()
    while wanted:
        name = wanted.pop()
        if name and name not in used:
            used.add(name)
            if name in made_by:
                wanted.extend(made_by[name].input)
    for node in [node for node in graph.node if not used.intersection(node.output)]:
        graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    for value in [value for value in graph.value_info if value.name not in used]:
        graph.value_info.remove(value)

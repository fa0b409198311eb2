"""Tracing a model whose graph is there already, or in a tenth of the time."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch

from mdmf_deploy.bundle.manifest import INPUT, OUTPUT
from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.model.architectures import architecture
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.export.trace import MatrixPooling, trace

Trace = Callable[[MdmfModel, Recipe, Path, Mapping[str, str]], Path]


def quickly_traced(detector: MdmfModel, recipe: Recipe, path: Path, metadata: Mapping[str, str]) -> Path:
    """Do as `trace` does, with PyTorch's older exporter. The graph has the same values, and other operators.

    For tests of what comes after tracing.
    """
    crop = recipe.preprocessing.crop
    detector.eval().requires_grad_(False)
    detector.backbone.bake_position_embedding(crop)
    grid = crop // architecture(recipe.backbone.architecture).patch
    detector.head.pooling = MatrixPooling(grid, recipe.head.pool)
    detector.head.fold()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its age
        torch.onnx.export(
            detector,
            (torch.zeros(2, 3, crop, crop),),
            str(path),
            dynamo=False,
            opset_version=recipe.export.opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
    model = onnx.load(path)
    _replace_refused_operators(model.graph)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = recipe.head.pool**2  # it calls them dynamic
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
    return path


def _replace_refused_operators(graph: onnx.GraphProto) -> None:
    """Write the shape that the class token is expanded to without operators that no bundle may have.

    The exporter writes Where(shape == -1, 1, shape), which is max(shape, 1).
    """
    (where,) = (node for node in graph.node if node.op_type == "Where")
    where.op_type = "Max"
    where.input[:] = [where.input[2], "one"]
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.int64), "one"))
    needed = {output.name for output in graph.output}
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            needed.update(node.input)


def known_or_traced(known: Mapping[str, torch.Tensor], graph: Path, other: Trace = trace) -> Trace:
    """Return a function that copies this graph for a model with exactly these tensors. `other` traces other models.

    The bandwidth may differ, since it is not part of a graph. Tracing takes seconds, and test_trace.py tests it.
    """

    def traced(detector: MdmfModel, recipe: Recipe, path: Path, metadata: Mapping[str, str]) -> Path:
        own = detector.state_dict()
        parts = own.keys() - {"log_sigma"}
        if own.keys() == known.keys() and all(torch.equal(own[key], known[key]) for key in parts):
            return Path(shutil.copy(graph, path))
        return other(detector, recipe, path, metadata)

    return traced

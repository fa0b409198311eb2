"""Trace the PyTorch detector to one ONNX graph, images -> signatures (extra: export)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from mdmf_deploy.bundle.manifest import INLINE_BYTES, INPUT, OUTPUT
from mdmf_deploy.bundle.recipe import Recipe
from mdmf_deploy.errors import RecipeError
from mdmf_deploy.model.architectures import architecture
from mdmf_deploy.model.pfs import MdmfModel


def pooling_matrix(grid: int, pool: int) -> Tensor:
    """Return adaptive average pooling as a matrix (pool * pool, grid * grid), float32. Its rows sum to 1.

    Window i of an axis is [floor(i * grid / pool), ceil((i + 1) * grid / pool)), as in torch.nn.AdaptiveAvgPool2d.
    """
    axis = torch.zeros(pool, grid, dtype=torch.float64)
    for i in range(pool):
        start, stop = i * grid // pool, -(-(i + 1) * grid // pool)
        axis[i, start:stop] = 1.0 / (stop - start)
    return torch.kron(axis, axis).float()


class MatrixPooling(nn.Module):
    """Pool (B, C, grid, grid) to (B, C, pool, pool) by one constant matrix product, a static operator everywhere.

    The exporter turns adaptive pooling with uneven windows (16 -> 7) into gathers, which are slow on most runtimes.
    """

    def __init__(self, grid: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.register_buffer("matrix", pooling_matrix(grid, pool).T.contiguous())

    def forward(self, tokens: Tensor) -> Tensor:
        assert isinstance(self.matrix, Tensor)
        pooled = tokens.flatten(2) @ self.matrix
        return pooled.reshape(tokens.shape[0], tokens.shape[1], self.pool, self.pool)


def trace(detector: MdmfModel, recipe: Recipe, path: Path, metadata: Mapping[str, str]) -> Path:
    """Write the detector as ONNX to path, checked, with the metadata embedded, and return path.

    Weights above 1.9 GB go to `path`.data. The batch is dynamic, the crop fixed.
    Tracing changes the detector: its position embedding is baked for the recipe's crop, its pooling becomes a matrix,
    and standardisation and batch norms are folded into the head's linear layers.
    Raises RecipeError if the crop is not a multiple of the patch, or the pool grid is finer than the patch grid.
    """
    import onnx

    crop, patch = recipe.preprocessing.crop, architecture(recipe.backbone.architecture).patch
    grid = crop // patch
    if crop % patch or recipe.head.pool > grid:
        raise RecipeError(
            f"recipe {recipe.name}: crop {crop} must be a multiple of {patch} pixels, with a pool of at most "
            f"{grid} patches; its pool is {recipe.head.pool}"
        )
    detector.eval().requires_grad_(False)
    detector.backbone.bake_position_embedding(crop)
    detector.head.pooling = MatrixPooling(grid, recipe.head.pool)
    detector.head.fold()
    # The exporter would take a batch of one for a constant.
    example = torch.zeros(2, 3, crop, crop)
    with _quiet():
        program = torch.onnx.export(
            detector,
            (example,),
            dynamo=True,
            opset_version=recipe.export.opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    _strip(program.model)
    program.model.metadata_props.update(metadata)
    size = sum(parameter.numel() * parameter.element_size() for parameter in detector.parameters())
    with _quiet():
        program.save(path, external_data=size > INLINE_BYTES)
    onnx.checker.check_model(path, full_check=True)
    return path


def _strip(model: object) -> None:
    """Remove the exporter's notes from every node and value. They hold stack traces with this machine's paths."""
    from onnx_ir import Model, traversal

    assert isinstance(model, Model)
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        values.extend(node.outputs)
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
    model.graph.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which logs every missing optional library and warns about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)

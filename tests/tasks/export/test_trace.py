"""The traced graph computes what the detector did, with static operators, on a batch of any size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.bundle.recipe import Backbone, Head, Preprocessing, Recipe
from mdmf_deploy.errors import RecipeError
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.export.trace import MatrixPooling, pooling_matrix, trace


@given(st.integers(1, 20).flatmap(lambda grid: st.tuples(st.just(grid), st.integers(1, grid))))
def test_pooling_is_torchs_adaptive_average(sizes: tuple[int, int]) -> None:
    grid, pool = sizes
    tokens = torch.randn(2, 3, grid, grid, generator=torch.Generator().manual_seed(grid * 31 + pool))
    expected = F.adaptive_avg_pool2d(tokens, (pool, pool))
    torch.testing.assert_close(MatrixPooling(grid, pool)(tokens), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pooling_matrix(grid, pool).sum(1), torch.ones(pool * pool))


@pytest.fixture(scope="module")
def uneven(tiny_recipe: Recipe) -> Recipe:
    """A 5 x 5 grid pooled to 2 x 2, whose windows overlap, of two blocks' tokens, with a norm that is folded."""
    return msgspec.structs.replace(
        tiny_recipe,
        backbone=Backbone(architecture="starter_vit14", blocks=(1, 2)),
        preprocessing=Preprocessing(crop=70),
        head=Head(pool=2, hidden=(16,), signature=8, activation="softplus", norm="batchnorm", normalise=True),
    )


@pytest.fixture(scope="module")
def traced(uneven: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor, np.ndarray]:
    """The graph, images, and the signatures that PyTorch extracted from them before tracing."""
    torch.manual_seed(3)
    detector = MdmfModel(uneven).eval()
    torch.nn.init.normal_(detector.backbone.pos_embed)
    detector.head.standardise(torch.randn(2 * 192), torch.rand(2 * 192) + 0.5)
    images = torch.randn(3, 3, 70, 70)
    with torch.inference_mode():
        expected = detector(images).numpy()
    path = trace(detector, uneven, tmp_path_factory.mktemp("traced") / "model.onnx", {"mdmf.tool": "test"})
    return path, images, expected


def test_the_graph_computes_what_the_detector_did(traced: tuple[Path, torch.Tensor, np.ndarray]) -> None:
    path, images, expected = traced
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 2, 3):
        (signatures,) = session.run(["signatures"], {"images": images[:batch].numpy()})
        np.testing.assert_allclose(signatures, expected[:batch], atol=2e-6)


def test_only_the_batch_is_dynamic_and_every_operator_static(traced: tuple[Path, torch.Tensor, np.ndarray]) -> None:
    model = onnx.load(traced[0])
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["batch", 3, 70, 70], ["batch", 4, 8]]
    kinds = Counter(node.op_type for node in model.graph.node)
    assert not {"Resize", "GatherND", "Gather", "Where", "If", "Loop", "BatchNormalization", "Sub"} & kinds.keys()
    assert kinds["Softmax"] == 2, "blocks 3 and 4 are not used"


def test_no_path_of_this_machine_is_in_the_file(traced: tuple[Path, torch.Tensor, np.ndarray]) -> None:
    data = traced[0].read_bytes()
    assert b"site-packages" not in data
    assert b".py" not in data
    assert [entry.key for entry in onnx.load(traced[0]).metadata_props] == ["mdmf.tool"]


@pytest.mark.parametrize(("crop", "pool"), [(60, 2), (56, 5)])
def test_a_crop_that_does_not_fit_is_an_error(tiny_recipe: Recipe, tmp_path: Path, crop: int, pool: int) -> None:
    recipe = msgspec.structs.replace(tiny_recipe, preprocessing=Preprocessing(crop=crop), head=Head(pool=pool))
    with pytest.raises(RecipeError, match="tiny"):
        trace(MdmfModel(recipe), recipe, tmp_path / "model.onnx", {})

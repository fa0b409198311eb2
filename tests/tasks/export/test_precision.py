"""fp16 graphs keep what would overflow in float32."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.graphs import extract
from onnx import TensorProto, helper, numpy_helper

from mdmf_deploy.bundle.manifest import INPUT, MODEL, OUTPUT
from mdmf_deploy.errors import QuantisationError
from mdmf_deploy.tasks.export.precision import move_weights, to_fp16


@pytest.fixture(scope="module")
def half(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_fp16(tiny_bundle / MODEL, tmp_path_factory.mktemp("half") / MODEL)


def test_fp16_halves_the_file_and_keeps_the_signatures(half: Path, tiny_bundle: Path) -> None:
    images = np.random.default_rng(0).standard_normal((4, 3, 56, 56)).astype(np.float32)
    exact = extract(tiny_bundle / MODEL, images)
    assert half.stat().st_size < 0.6 * (tiny_bundle / MODEL).stat().st_size
    error = np.abs(extract(half, images) - exact).max()
    assert 0 < error < 0.01 * exact.std()
    assert {entry.key: entry.value for entry in onnx.load(half).metadata_props}["mdmf.precision"] == "fp16"


def test_fp16_keeps_norms_softmax_and_attention_scores_in_fp32(half: Path) -> None:
    """Types come from inference alone, not from the converter's notes."""
    model = onnx.shape_inference.infer_shapes(onnx.load(half), check_type=True, strict_mode=True, data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    made_by = {output: node for node in model.graph.node for output in node.output}
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    attention = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert norms
    assert attention
    assert {types[node.input[0]] for node in (*norms, *attention)} == {TensorProto.FLOAT}
    for softmax in attention:
        scores = made_by[softmax.input[0]]
        while scores.op_type == "Cast":
            scores = made_by[scores.input[0]]
        assert scores.op_type == "MatMul"
        assert types[scores.output[0]] == TensorProto.FLOAT
        assert [made_by[operand].op_type for operand in scores.input] == ["Cast", "Cast"]
        assert [types[made_by[operand].input[0]] for operand in scores.input] == [TensorProto.FLOAT16] * 2


def test_fp16_does_its_products_in_fp16(half: Path) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(half))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    attention = sum(node.op_type == "Softmax" for node in model.graph.node)
    assert sum(types.get(node.output[0]) == TensorProto.FLOAT for node in products) == attention


def test_a_softmax_of_something_else_than_a_product_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle / MODEL)
    next(node for node in model.graph.node if node.op_type == "Softmax").input[0] = "images"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(QuantisationError, match="is not a product of queries and keys"):
        to_fp16(tmp_path / "odd.onnx", tmp_path / MODEL)


def test_fp16_divides_signatures_by_their_lengths_in_fp32(tmp_path: Path) -> None:
    """In float16 the square of 300 overflows, and the least length, which keeps zero from becoming NaN, is zero."""
    nodes = [
        helper.make_node("ReduceL2", [INPUT, "axes"], ["length"], name="length"),
        helper.make_node("Clip", ["length", "least"], ["bounded"], name="bounded"),
        helper.make_node("Div", [INPUT, "bounded"], [OUTPUT], name="divided"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in (INPUT, OUTPUT)]
    constants = [numpy_helper.from_array(np.array([-1]), "axes"), numpy_helper.from_array(np.float32(1e-12), "least")]
    graph = helper.make_graph(nodes, "lengths", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "exact.onnx")
    rows = np.array([[0, 0, 0, 0], [300, 400, 0, 0]], np.float32)
    found = extract(to_fp16(tmp_path / "exact.onnx", tmp_path / MODEL), rows)
    np.testing.assert_allclose(found, [[0, 0, 0, 0], [0.6, 0.8, 0, 0]], atol=1e-3)


def test_weights_beside_a_graph_are_the_same_and_need_no_network_card(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uuid1 would open a socket to read the card's address."""

    def refuse() -> None:
        raise AssertionError("uuid1 was called")

    monkeypatch.setattr(uuid, "uuid1", refuse)
    whole = onnx.load(tiny_bundle / MODEL)
    moved = onnx.load(tiny_bundle / MODEL)
    move_weights(moved, "weights", smallest=4096)
    onnx.save(moved, tmp_path / MODEL)
    large = [len(tensor.raw_data) for tensor in whole.graph.initializer if len(tensor.raw_data) >= 4096]
    assert large
    assert (tmp_path / "weights").stat().st_size == sum(large)
    found = onnx.load(tmp_path / MODEL).graph.initializer
    for before, after in zip(whole.graph.initializer, found, strict=True):
        assert np.array_equal(numpy_helper.to_array(before), numpy_helper.to_array(after))

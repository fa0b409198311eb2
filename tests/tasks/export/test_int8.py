"""Quantised graphs are symmetric, and any of their layers can be put back to fp32."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.graphs import extract
from onnx import TensorProto, helper, numpy_helper

from mdmf_deploy.bundle.manifest import INPUT, MODEL, OUTPUT
from mdmf_deploy.errors import QuantisationError, RuntimeUnavailable
from mdmf_deploy.tasks.export.int8 import Restorable, check_symmetric, quantise


def test_every_pair_is_symmetric_int8(tiny_quantised: onnx.ModelProto) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in tiny_quantised.graph.initializer}
    pairs = [node for node in tiny_quantised.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 60
    for node in pairs:
        assert constants[node.input[2]].dtype == np.int8
        assert not constants[node.input[2]].any()


def test_an_asymmetric_graph_is_refused(tiny_quantised: onnx.ModelProto) -> None:
    crooked = onnx.ModelProto()
    crooked.CopyFrom(tiny_quantised)
    node = next(node for node in crooked.graph.node if node.op_type == "QuantizeLinear")
    zero_point = next(tensor for tensor in crooked.graph.initializer if tensor.name == node.input[2])
    zero_point.CopyFrom(helper.make_tensor(zero_point.name, TensorProto.INT8, zero_point.dims, [3]))
    with pytest.raises(QuantisationError, match=f"zero point of {node.name} is not 0"):
        check_symmetric(crooked)
    zero_point.CopyFrom(helper.make_tensor(zero_point.name, TensorProto.UINT8, zero_point.dims, [0]))
    with pytest.raises(QuantisationError):
        check_symmetric(crooked)


def two_layers(path: Path) -> Path:
    """A graph of two products, its weights in a file of their own, as in graphs above 2 GB."""
    generator = np.random.default_rng(0)
    shapes = {"first": (192, 64), "second": (64, 8)}
    weights = [
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Flatten", [INPUT], ["pixels"], name="flatten"),
        helper.make_node("MatMul", ["pixels", "first"], ["hidden"], name="first"),
        helper.make_node("Relu", ["hidden"], ["positive"], name="relu"),
        helper.make_node("MatMul", ["positive", "second"], [OUTPUT], name="second"),
    ]
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 8])]
    graph = helper.make_graph(nodes, "two", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    return path


def test_quantising_prints_nothing_sends_nothing_and_leaves_logging_alone(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    apart = quantise(two_layers(tmp_path / MODEL), images)
    assert capfd.readouterr() == ("", "")
    assert type(logging.getLogger("some name of its own")) is logging.Logger
    assert sys.modules.get("openvino_telemetry", "absent") is not None
    weights = [tensor for tensor in apart.graph.initializer if tensor.data_type == TensorProto.INT8]
    assert {tuple(tensor.dims) for tensor in weights} >= {(192, 64), (64, 8)}
    # NNCF gives values after ReLU a uint8 pair, which is made int8 and spans the same range.
    onnx.save(apart, tmp_path / "int8.onnx")
    exact = extract(tmp_path / MODEL, images)
    np.testing.assert_allclose(extract(tmp_path / "int8.onnx", images), exact, atol=0.05 * exact.std())


def test_the_error_without_nncf_names_what_to_install(
    tiny_bundle: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(RuntimeUnavailable, match=r"int8 needs nncf; run: pip install 'mdmf-deploy\[export\]'"):
        quantise(tiny_bundle / MODEL, images)


def test_layers_are_named_after_the_modules_they_come_from(restorable: Restorable) -> None:
    block = [f"blocks.0.{name}" for name in ("attn.qkv", "attn.scores", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert restorable.layers[:6] == ("patch_embed.proj", *block)
    assert restorable.layers[-3:] == ("head.pooling", "head.layers.0", "head.layers.1")
    assert len(restorable.layers) == 1 + 4 * 5 + 3


def test_with_every_layer_restored_the_graph_is_the_fp32_one(
    restorable: Restorable, tiny_bundle: Path, images: np.ndarray
) -> None:
    path = restorable.variant(restorable.layers, "all")
    ours, theirs = (onnx.load(p).graph for p in (path, tiny_bundle / MODEL))
    assert [(n.name, *n.input, *n.output) for n in ours.node] == [(n.name, *n.input, *n.output) for n in theirs.node]
    np.testing.assert_array_equal(extract(path, images), extract(tiny_bundle / MODEL, images))


def test_with_no_layer_restored_the_graph_is_nncfs(
    restorable: Restorable, tiny_quantised: onnx.ModelProto, images: np.ndarray, tmp_path: Path
) -> None:
    onnx.save(tiny_quantised, tmp_path / MODEL)
    expected = extract(tmp_path / MODEL, images)
    # Not bit for bit: NNCF drops the shapes, and onnxruntime fuses more where it knows them.
    np.testing.assert_allclose(extract(restorable.variant((), "none"), images), expected, atol=1e-4 * expected.std())


def test_a_restored_layer_has_its_fp32_inputs_and_nothing_is_left_over(
    restorable: Restorable, tiny_bundle: Path
) -> None:
    before = {node.name: node for node in onnx.load(tiny_bundle / MODEL).graph.node}

    def changed(kept: list[str]) -> tuple[set[str], onnx.GraphProto]:
        graph = onnx.load(restorable.variant(kept, "part")).graph
        return {n.name for n in graph.node if n.name in before and n.input != before[n.name].input}, graph

    (product,) = (name for name in changed([])[0] - changed(["blocks.2.mlp.fc1"])[0] if "MatMul" in name)
    (bias,) = (node for node in before.values() if before[product].output[0] in node.input)
    assert "backbone.blocks.2.mlp.fc1.bias" in bias.input
    graph = changed(["blocks.2.mlp.fc1"])[1]
    made = {tensor.name for tensor in graph.initializer} | {output for node in graph.node for output in node.output}
    used = {name for node in graph.node for name in node.input if name}
    assert used <= made | {"images"}
    assert made <= used | {"signatures"}


def test_a_corrected_bias_goes_with_its_layer(
    tiny_bundle: Path, tiny_quantised: onnx.ModelProto, tmp_path: Path
) -> None:
    # NNCF corrects a bias only if it is far enough off. Correct one by hand.
    name = "backbone.blocks.1.mlp.fc2.bias"
    corrected = onnx.ModelProto()
    corrected.CopyFrom(tiny_quantised)
    tensor = next(tensor for tensor in corrected.graph.initializer if tensor.name == name)
    exact = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(exact + np.float32(0.25), name))
    restorable = Restorable(tiny_bundle / MODEL, corrected, tmp_path)

    def bias(kept: list[str]) -> np.ndarray:
        model = onnx.load(restorable.variant(kept, "part"))
        (found,) = (tensor for tensor in model.graph.initializer if tensor.name.startswith(name))
        return onnx.numpy_helper.to_array(found)

    np.testing.assert_array_equal(bias(["blocks.1.mlp.fc2"]), exact)
    np.testing.assert_array_equal(bias(["blocks.1.mlp.fc1"]), exact + np.float32(0.25))


def test_each_restored_layer_brings_the_graph_closer_to_fp32(
    restorable: Restorable, tiny_bundle: Path, images: np.ndarray
) -> None:
    exact = extract(tiny_bundle / MODEL, images)
    parts = (restorable.layers[:place] for place in (0, 12, 24))
    errors = [np.abs(extract(restorable.variant(part, "part"), images) - exact).mean() for part in parts]
    assert errors[0] > errors[1] > errors[2] == 0


def test_a_saved_graph_stands_alone_and_names_its_precision(
    restorable: Restorable, tiny_bundle: Path, images: np.ndarray, tmp_path: Path
) -> None:
    kept = ["patch_embed.proj"]
    path = restorable.save(kept, tmp_path / MODEL)
    assert [file.name for file in tmp_path.iterdir()] == [MODEL]
    assert path.stat().st_size < 0.4 * (tiny_bundle / MODEL).stat().st_size
    np.testing.assert_array_equal(extract(path, images), extract(restorable.variant(kept, "kept"), images))
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["mdmf.precision"] == "int8"
    assert metadata["mdmf.sigma"] == "1.0"


def test_a_twin_of_another_graph_is_refused(tiny_quantised: onnx.ModelProto, tiny_bundle: Path, tmp_path: Path) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(tiny_quantised)
    node = next(node for node in other.graph.node if node.op_type == "Softmax")
    node.name = "renamed"
    with pytest.raises(QuantisationError, match="can no longer be restored"):
        Restorable(tiny_bundle / MODEL, other, tmp_path)

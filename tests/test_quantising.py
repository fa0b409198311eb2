from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from mdmf_deploy.bundle import MODEL
from mdmf_deploy.quantising import to_fp16, to_int8


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 3, 56, 56)).astype(np.float32)


@pytest.fixture(scope="module")
def half(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_fp16(tiny_bundle / MODEL, tmp_path_factory.mktemp("half") / MODEL)


@pytest.fixture(scope="module")
def quantised(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Path:
    return to_int8(tiny_bundle / MODEL, tmp_path_factory.mktemp("int8") / MODEL, images)


def sign(path: Path, images: np.ndarray) -> np.ndarray:
    (signatures,) = onnxruntime.InferenceSession(path).run(None, {"images": images})
    return signatures


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_fp16_halves_the_file_and_keeps_the_signatures(half: Path, tiny_bundle: Path, images: np.ndarray) -> None:
    exact = sign(tiny_bundle / MODEL, images)
    assert half.stat().st_size < 0.6 * (tiny_bundle / MODEL).stat().st_size
    error = np.abs(sign(half, images) - exact).max()
    assert 0 < error < 0.01 * exact.std()
    assert metadata(half)["mdmf.precision"] == "fp16"


def test_fp16_keeps_norms_and_softmax_in_fp32(half: Path) -> None:
    model = onnx.load(half)
    made_by = {output: node for node in model.graph.node for output in node.output}
    guarded = [node for node in model.graph.node if node.op_type in ("LayerNormalization", "Softmax")]
    assert guarded
    for node in guarded:
        source = made_by[node.input[0]]
        assert source.op_type == "Cast"
        assert [attribute.i for attribute in source.attribute if attribute.name == "to"] == [TensorProto.FLOAT]


def test_int8_is_symmetric_and_leaves_the_head_alone(quantised: Path) -> None:
    graph = onnx.load(quantised).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scaled = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert scaled
    for node in scaled:
        zero_point = constants[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
    made_by = {output: node for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    from_int8 = [
        made_by[node.input[1]].op_type == "DequantizeLinear" if node.input[1] in made_by else False for node in products
    ]
    # qkv, projection and two of the MLP in each of four blocks; pooling and the head's two layers come last.
    assert sum(from_int8) == 16
    assert not any(from_int8[-3:])


def test_int8_is_close_and_smaller(quantised: Path, tiny_bundle: Path, images: np.ndarray) -> None:
    exact = sign(tiny_bundle / MODEL, images)
    assert quantised.stat().st_size < 0.4 * (tiny_bundle / MODEL).stat().st_size
    assert 0 < np.abs(sign(quantised, images) - exact).max() < 0.5 * exact.std()
    assert metadata(quantised)["mdmf.precision"] == "int8"
    assert metadata(quantised)["mdmf.sigma"] == "1.0"

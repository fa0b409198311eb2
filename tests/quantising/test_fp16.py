from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from mdmf_deploy.bundle import MODEL
from mdmf_deploy.quantising.fp16 import to_fp16


@pytest.fixture(scope="module")
def half(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_fp16(tiny_bundle / MODEL, tmp_path_factory.mktemp("half") / MODEL)


def sign(path: Path, images: np.ndarray) -> np.ndarray:
    (signatures,) = onnxruntime.InferenceSession(path).run(None, {"images": images})
    return signatures


def test_fp16_halves_the_file_and_keeps_the_signatures(half: Path, tiny_bundle: Path) -> None:
    images = np.random.default_rng(0).standard_normal((4, 3, 56, 56)).astype(np.float32)
    exact = sign(tiny_bundle / MODEL, images)
    assert half.stat().st_size < 0.6 * (tiny_bundle / MODEL).stat().st_size
    error = np.abs(sign(half, images) - exact).max()
    assert 0 < error < 0.01 * exact.std()
    assert {entry.key: entry.value for entry in onnx.load(half).metadata_props}["mdmf.precision"] == "fp16"


def test_fp16_keeps_norms_and_softmax_in_fp32(half: Path) -> None:
    model = onnx.load(half)
    made_by = {output: node for node in model.graph.node for output in node.output}
    guarded = [node for node in model.graph.node if node.op_type in ("LayerNormalization", "Softmax")]
    assert guarded
    for node in guarded:
        source = made_by[node.input[0]]
        assert source.op_type == "Cast"
        assert [attribute.i for attribute in source.attribute if attribute.name == "to"] == [TensorProto.FLOAT]

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mdmf_deploy.bundle.manifest import MODEL
from mdmf_deploy.errors import QuantisationError, RuntimeUnavailable
from mdmf_deploy.tasks.export.int8 import check_symmetric, quantise


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


def test_it_says_nothing_sends_nothing_and_leaves_logging_alone(
    tiny_bundle: Path, images: np.ndarray, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = onnx.load(tiny_bundle / MODEL)
    # As graphs above 2 GB have it.
    onnx.save(model, tmp_path / MODEL, save_as_external_data=True, location=f"{MODEL}.data", size_threshold=1024)
    apart = quantise(tmp_path / MODEL, images[:1])
    assert capfd.readouterr() == ("", "")
    assert type(logging.getLogger("some name of its own")) is logging.Logger
    assert sys.modules.get("openvino_telemetry", "absent") is not None
    weights = [tensor for tensor in apart.graph.initializer if tensor.data_type == TensorProto.INT8 and tensor.dims]
    assert sum(np.prod(tensor.dims) for tensor in weights) > 1_500_000


def test_without_nncf_it_says_what_to_install(
    tiny_bundle: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(RuntimeUnavailable, match=r"int8 needs nncf; run: pip install 'mdmf-deploy\[export\]'"):
        quantise(tiny_bundle / MODEL, images)

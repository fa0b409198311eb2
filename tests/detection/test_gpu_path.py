"""The whole GPU path, crops to rows, on a pretended GPU: TensorRT's engine by ONNX Runtime, our kernels by g++."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from fakes.host_tensorrt import HostTensorRt
from fakes.on_host import host_device

from mdmf_deploy import Detector
from mdmf_deploy.mmd.cuda import reduction as cuda
from mdmf_deploy.runtime import trt
from mdmf_deploy.runtime.building import obtain as inspecting


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostTensorRt:
    device = host_device()
    made = HostTensorRt(device)
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    monkeypatch.setattr(trt, "open_device", lambda: device)
    monkeypatch.setattr(trt, "require", lambda runtime: None)
    monkeypatch.setattr(inspecting, "probe", lambda: device.gpu)
    monkeypatch.setattr(cuda, "open_device", lambda: device)
    return made


def test_rows_of_the_starter_are_those_of_the_cpu(library: HostTensorRt, photos: Path) -> None:
    paths = sorted(photos.iterdir())[:5]
    with Detector("starter", "onnxruntime") as on_cpu:
        expected = on_cpu.detect(paths)
    # Batches that the engine splits, and a last one that is smaller.
    with Detector("starter", "tensorrt:latency", batch_size=3) as on_gpu:
        assert on_gpu.reduction.name == "cuda"
        rows = on_gpu.detect(paths)
    assert library.device.launched
    for row, other in zip(rows, expected, strict=True):
        assert (row.runtime, row.precision, row.verdict) == ("tensorrt", "int8", "uncalibrated")
        assert row.score == pytest.approx(other.score, rel=1e-4, abs=1e-6)
        np.testing.assert_allclose(row.contributions, other.contributions, rtol=1e-3, atol=1e-5)
    assert not library.device.allocated

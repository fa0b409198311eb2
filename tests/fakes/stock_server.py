"""Serves a model repository like Triton, from its config.pbtxt files and plain ONNX Runtime alone."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
from helpers import triton_schema
from helpers.graphs import exact_int8

Tensors = dict[str, np.ndarray]
_TYPES = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32, "TYPE_FP64": np.float64}


class StockServer:
    """Loads every model that has a config. Ensembles pass tensors on according to their maps."""

    def __init__(self, repository: Path) -> None:
        self.configs: dict[str, Any] = {}
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        # Triton has no such options. The repository's README states which processors are unsuitable without them.
        options = exact_int8()
        for path in sorted(repository.glob("*/config.pbtxt")):
            config = triton_schema.parse(path.read_text())
            assert config.name == path.parent.name
            versions = [folder for folder in path.parent.iterdir() if folder.is_dir()]
            assert [folder.name for folder in versions] == ["1"]
            self.configs[config.name] = config
            if config.platform != "ensemble":
                assert config.platform == "onnxruntime_onnx"
                model = onnxruntime.InferenceSession(
                    versions[0] / "model.onnx", options, providers=["CPUExecutionProvider"]
                )
                self.sessions[config.name] = model

    def infer(self, name: str, tensors: Tensors) -> Tensors:
        config = self.configs[name]
        self._check(config, config.input, tensors)
        if name in self.sessions:
            outputs = [output.name for output in config.output]
            answer = dict(zip(outputs, self.sessions[name].run(outputs, tensors), strict=True))
        else:
            known = dict(tensors)
            for step in config.ensemble_scheduling.step:
                got = self.infer(step.model_name, {name: known[value] for name, value in step.input_map.items()})
                known |= {value: got[name] for name, value in step.output_map.items()}
            answer = {output.name: known[output.name] for output in config.output}
        self._check(config, config.output, answer)
        return answer

    def client(self) -> ModuleType:
        """Stand in for tritonclient.http: its InferInput and InferenceServerClient, answered by this server."""
        server = self

        class InferInput:
            def __init__(self, name: str, shape: tuple[int, ...], datatype: str) -> None:
                self.name, self.shape, self.datatype = name, tuple(shape), f"TYPE_{datatype}"

            def set_data_from_numpy(self, data: np.ndarray) -> None:
                assert data.shape == self.shape
                assert data.dtype == _TYPES[self.datatype]
                self.data = data

        class InferResult:
            def __init__(self, tensors: Tensors) -> None:
                self._tensors = tensors

            def as_numpy(self, name: str) -> np.ndarray:
                return self._tensors[name]

        class InferenceServerClient:
            def __init__(self, url: str) -> None:
                assert "://" not in url

            def infer(self, name: str, inputs: list[InferInput]) -> InferResult:
                return InferResult(server.infer(name, {one.name: one.data for one in inputs}))

        module = ModuleType("tritonclient.http")
        module.InferInput, module.InferenceServerClient = InferInput, InferenceServerClient  # type: ignore[attr-defined]
        return module

    @staticmethod
    def _check(config: Any, declared: Any, tensors: Tensors) -> None:
        assert set(tensors) == {one.name for one in declared}
        for one in declared:
            value = tensors[one.name]
            kind = triton_schema.ENUMS["DataType"][one.data_type]
            assert value.dtype == _TYPES[kind], f"{config.name}: {one.name} is {value.dtype}, declared {kind}"
            assert value.shape[1:] == tuple(one.dims), f"{config.name}: {one.name} is {value.shape}"
            assert len(value) <= config.max_batch_size

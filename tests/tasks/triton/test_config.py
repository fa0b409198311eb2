"""config.pbtxt is text that Triton's parser accepts, and it describes the graphs beside it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from helpers import triton_schema
from helpers.handmade import manifest
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.tasks.triton import Serving
from mdmf_deploy.tasks.triton.config import config_text, configs, entries

_ONNX_TYPES = {"TYPE_UINT8": "UINT8", "TYPE_FP32": "FLOAT", "TYPE_FP64": "DOUBLE"}
_STEPS = ["starter_preprocessing", "starter_signatures", "starter_mmd"]


def parsed(serving: Serving) -> dict[str, Any]:
    made = configs("handmade", manifest(), serving, {"bundle_id": "abc"})
    return {name: triton_schema.parse(config_text(config)) for name, config in made.items()}


@pytest.mark.parametrize("model", _STEPS)
def test_inputs_and_outputs_are_those_of_the_graph(starter: Path, model: str) -> None:
    config = triton_schema.parse((starter / model / "config.pbtxt").read_text())
    graph = onnx.load(starter / model / "1" / "model.onnx").graph
    for declared, values in ((config.input, graph.input), (config.output, graph.output)):
        assert [one.name for one in declared] == [value.name for value in values]
        for one, value in zip(declared, values, strict=True):
            kind = triton_schema.ENUMS["DataType"][one.data_type]
            tensor = value.type.tensor_type
            assert onnx.TensorProto.DataType.Name(tensor.elem_type) == _ONNX_TYPES[kind]
            # max_batch_size requires that only the batch is free.
            assert tensor.shape.dim[0].dim_param
            assert [size.dim_value for size in tensor.shape.dim[1:]] == list(one.dims)


def test_every_tensor_of_the_ensemble_comes_from_somewhere(starter: Path) -> None:
    models = {name: triton_schema.parse((starter / name / "config.pbtxt").read_text()) for name in _STEPS}
    ensemble = triton_schema.parse((starter / "starter/config.pbtxt").read_text())
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == _STEPS
    known = {one.name: (one.data_type, list(one.dims)) for one in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = models[step.model_name]
        assert model.max_batch_size == ensemble.max_batch_size
        assert {tensor: known[step.input_map[tensor]] for tensor in step.input_map} == {
            one.name: (one.data_type, list(one.dims)) for one in model.input
        }
        assert set(step.output_map) == {one.name for one in model.output}
        known |= {step.output_map[one.name]: (one.data_type, list(one.dims)) for one in model.output}
    for one in ensemble.output:
        assert known[one.name] == (one.data_type, list(one.dims))


def test_an_ensemble_has_no_field_that_triton_refuses() -> None:
    ensemble = parsed(Serving())["handmade"]
    assert ensemble.platform == "ensemble"
    assert not ensemble.instance_group
    assert not ensemble.model_warmup
    assert not ensemble.HasField("dynamic_batching")
    assert ensemble.parameters["bundle_id"].string_value == "abc"


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_models_are_batched_warmed_up_and_put_on_their_device(device: str) -> None:
    for name, config in parsed(Serving(device, max_batch=12)).items():  # type: ignore[arg-type]
        assert config.max_batch_size == 12
        assert config.version_policy.latest.num_versions == 1
        if config.platform == "ensemble":
            continue
        (group,) = config.instance_group
        assert triton_schema.ENUMS["Kind"][group.kind] == f"KIND_{device.upper()}"
        assert config.HasField("dynamic_batching")
        assert list(config.dynamic_batching.preferred_batch_size) == ([3, 12] if name.endswith("signatures") else [])
        (warmup,) = config.model_warmup
        (given,) = config.input
        assert list(warmup.inputs[given.name].dims) == list(given.dims)
        assert warmup.inputs[given.name].data_type == given.data_type
        accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
        found = [(one.name, dict(one.parameters)) for one in accelerators]
        assert found == ([("cuda", {"use_tf32": "0"})] if device == "gpu" else [])


def test_a_plan_takes_the_graphs_place(tmp_path: Path) -> None:
    plan = tmp_path / "some.plan"
    plan.touch()
    models = parsed(Serving("gpu", plan=plan))
    assert models["handmade_signatures"].platform == "tensorrt_plan"
    assert not models["handmade_signatures"].HasField("optimization")
    assert models["handmade_mmd"].platform == "onnxruntime_onnx"


@pytest.mark.parametrize("most", [1, 2, 3, 32])
def test_no_preferred_batch_is_larger_than_the_largest(most: int) -> None:
    preferred = parsed(Serving(max_batch=most))["handmade_signatures"].dynamic_batching.preferred_batch_size
    assert sorted(set(preferred)) == list(preferred)
    assert preferred[0] >= 1
    assert preferred[-1] == most


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=4))
def test_any_text_reads_back_as_it_was(values: dict[str, str]) -> None:
    message = {"parameters": entries({key: {"string_value": value} for key, value in values.items()})}
    config = triton_schema.parse(config_text(message))
    assert {key: parameter.string_value for key, parameter in config.parameters.items()} == values


def test_the_schema_refuses_unknown_fields_and_wrong_types() -> None:
    for wrong in ('max_batch: 3\nname: "a"', "max_batch_size: true", 'platform: TYPE_FP32 name: "a"', "name: {}"):
        with pytest.raises(text_format.ParseError):
            triton_schema.parse(wrong)


def test_the_schema_is_tritons() -> None:
    """Compare with tritonclient if it is installed. Its package imports gRPC, but the generated file does not."""
    spec = importlib.util.find_spec("tritonclient")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("tritonclient is not installed")
    path = Path(spec.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    generated = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert generated is not None
    assert generated.loader is not None
    module = importlib.util.module_from_spec(generated)
    generated.loader.exec_module(module)
    ours, theirs = triton_schema.parse("").DESCRIPTOR, module.ModelConfig.DESCRIPTOR
    compared = set()

    def compare(our: Any, their: Any) -> None:
        compared.add(our.name)
        for field in our.fields:
            other = their.fields_by_name[field.name]
            assert (field.type, field.is_repeated) == (other.type, other.is_repeated), field.full_name
            if field.enum_type:
                assert set(field.enum_type.values_by_name) <= set(other.enum_type.values_by_name)
            if field.message_type:
                compare(field.message_type, other.message_type)

    compare(ours, theirs)
    assert set(triton_schema.MESSAGES) <= compared

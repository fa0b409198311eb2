"""config.pbtxt of the three models and of the ensemble that chains them, as Triton's model_config.proto defines it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mdmf_deploy.bundle.manifest import Manifest
from mdmf_deploy.tasks.triton.graphs import CONTRIBUTIONS, CROPS, IMAGES, SCORE, SIGNATURES
from mdmf_deploy.tasks.triton.serving import Serving

PREPROCESSING, EXTRACTION, REDUCTION = "preprocessing", "signatures", "mmd"
STEPS = (PREPROCESSING, EXTRACTION, REDUCTION)
# How long a crop waits for others to fill its batch, in microseconds.
_QUEUE_DELAY = 2000

# Name -> data type and shape, without the batch.
Tensors = dict[str, tuple[str, list[int]]]
# Field -> a string, number, bool, Symbol or Message, or for a repeated field a list of them.
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Symbol:
    """The name of an enumeration's value. It is written without quotes."""

    name: str


def configs(name: str, manifest: Manifest, serving: Serving, parameters: Mapping[str, str]) -> dict[str, Message]:
    """Return the config.pbtxt of every model by its name. The ensemble, under `name`, has the parameters."""
    crop, patches = manifest.preprocessing.crop, manifest.model.pool**2
    crops: Tensors = {CROPS: ("UINT8", [crop, crop, 3])}
    images: Tensors = {IMAGES: ("FP32", [3, crop, crop])}
    signatures: Tensors = {SIGNATURES: ("FP32", [patches, manifest.model.signature])}
    scores: Tensors = {SCORE: ("FP64", [1]), CONTRIBUTIONS: ("FP32", [patches])}
    flow = dict(zip(STEPS, [(crops, images), (images, signatures), (signatures, scores)], strict=True))
    made = {f"{name}_{step}": _model(f"{name}_{step}", step, *tensors, serving) for step, tensors in flow.items()}
    steps = [
        {
            "model_name": f"{name}_{step}",
            "model_version": -1,
            "input_map": entries({tensor: tensor for tensor in given}),
            "output_map": entries({tensor: tensor for tensor in got}),
        }
        for step, (given, got) in flow.items()
    ]
    # Triton refuses an ensemble with instance groups, batching or a warm-up. Its steps have them.
    made[name] = {
        "name": name,
        "platform": "ensemble",
        **_interface(crops, scores, serving),
        "ensemble_scheduling": {"step": steps},
        "parameters": entries({key: {"string_value": value} for key, value in parameters.items()}),
    }
    return made


def config_text(message: Message) -> str:
    """Return a message in protobuf's text format, one field per line.

    Written by hand, because no package has Triton's own schema without gRPC.
    """
    return "".join(f"{line}\n" for line in _lines(message, ""))


def entries(values: Mapping[str, Any]) -> list[Message]:
    """Return a map field, which is a list of messages with a key and a value."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _model(name: str, step: str, given: Tensors, got: Tensors, serving: Serving) -> Message:
    planned = step == EXTRACTION and serving.plan is not None
    config: dict[str, Any] = {
        "name": name,
        "platform": "tensorrt_plan" if planned else "onnxruntime_onnx",
        **_interface(given, got, serving),
        "instance_group": [{"kind": Symbol(f"KIND_{serving.device.upper()}"), "count": 1}],
        "dynamic_batching": _batching(step, serving),
        "model_warmup": [_warmup(given)],
    }
    if serving.device == "gpu" and not planned:
        # The default is TF32, whose 10 bits would move scores. An older Triton reports that it cannot turn it off.
        accelerator = {"name": "cuda", "parameters": entries({"use_tf32": "0"})}
        config["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}
    return config


def _interface(given: Tensors, got: Tensors, serving: Serving) -> Message:
    return {
        "max_batch_size": serving.max_batch,
        "input": _tensors(given),
        "output": _tensors(got),
        "version_policy": {"latest": {"num_versions": 1}},
    }


def _tensors(tensors: Tensors) -> list[Message]:
    return [{"name": name, "data_type": _type(kind), "dims": dims} for name, (kind, dims) in tensors.items()]


def _batching(step: str, serving: Serving) -> Message:
    if step != EXTRACTION:
        # Take what is waiting as one batch, but do not wait for more: the network's batches set the pace.
        return {}
    preferred = sorted({max(1, serving.max_batch // 4), serving.max_batch})
    return {"preferred_batch_size": preferred, "max_queue_delay_microseconds": _QUEUE_DELAY}


def _warmup(given: Tensors) -> Message:
    inputs = {name: {"data_type": _type(kind), "dims": dims, "zero_data": True} for name, (kind, dims) in given.items()}
    return {"name": "zeros", "batch_size": 1, "inputs": entries(inputs)}


def _type(kind: str) -> Symbol:
    return Symbol(f"TYPE_{kind}")


def _lines(message: Message, indent: str) -> Iterator[str]:
    for name, value in message.items():
        values = value if isinstance(value, list) else [value]
        if values and not isinstance(values[0], Mapping):
            yield f"{indent}{name}: {_list(value) if isinstance(value, list) else _scalar(value)}"
            continue
        for one in values:
            yield f"{indent}{name} {{"
            yield from _lines(one, f"{indent}  ")
            yield f"{indent}}}"


def _list(values: Sequence[Any]) -> str:
    return f"[{', '.join(map(_scalar, values))}]"


def _scalar(value: Any) -> str:
    # The text format shares JSON's strings, numbers and truth values, except characters written as two escapes.
    return value.name if isinstance(value, Symbol) else json.dumps(value, ensure_ascii=False)

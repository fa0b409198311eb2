"""config.pbtxt of the three models and of the ensemble that chains them (Triton's model_config.proto)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mdmf_deploy.bundle.manifest import Manifest
from mdmf_deploy.tasks.triton.graphs import CONTRIBUTIONS, CROPS, IMAGES, P_VALUE, SCORE, SIGNATURES
from mdmf_deploy.tasks.triton.serving import Serving

PREPROCESSING, SIGNING, REDUCTION = "preprocessing", "signatures", "mmd"
STEPS = (PREPROCESSING, SIGNING, REDUCTION)

# How long a crop waits for others to fill its batch.
_QUEUE_DELAY_US = 2000

Tensors = dict[str, tuple[str, list[int]]]
"""Name -> data type and shape, without the batch."""


def configs(
    name: str, manifest: Manifest, serving: Serving, p_values: bool, parameters: Mapping[str, str]
) -> dict[str, Message]:
    """Model -> its config.pbtxt; the ensemble's is under `name`, and has the parameters."""
    crop, patches = manifest.preprocessing.crop, manifest.model.pool**2
    crops: Tensors = {CROPS: ("UINT8", [crop, crop, 3])}
    images: Tensors = {IMAGES: ("FP32", [3, crop, crop])}
    signatures: Tensors = {SIGNATURES: ("FP32", [patches, manifest.model.signature])}
    scores: Tensors = {SCORE: ("FP64", [1]), CONTRIBUTIONS: ("FP32", [patches])}
    if p_values:
        scores[P_VALUE] = ("FP64", [1])
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
    # Triton refuses instance groups, batching and a warm-up of an ensemble: those are its steps' own.
    made[name] = {
        "name": name,
        "platform": "ensemble",
        **_interface(crops, scores, serving),
        "ensemble_scheduling": {"step": steps},
        "parameters": entries({key: {"string_value": value} for key, value in parameters.items()}),
    }
    return made


def _model(name: str, step: str, given: Tensors, got: Tensors, serving: Serving) -> Message:
    planned = step == SIGNING and serving.plan is not None
    config: dict[str, Any] = {
        "name": name,
        "platform": "tensorrt_plan" if planned else "onnxruntime_onnx",
        **_interface(given, got, serving),
        "instance_group": [{"kind": Symbol(f"KIND_{serving.device.upper()}"), "count": 1}],
        "dynamic_batching": _batching(step, serving),
        "model_warmup": [_warmup(given)],
    }
    if serving.device == "gpu" and not planned:
        # By default products are taken in TF32, whose 10 bits would move scores; an older Triton says it cannot.
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
    if step != SIGNING:
        # What waits is taken together, but nothing waits for more: the model's batches set the pace.
        return {}
    preferred = sorted({max(1, serving.max_batch // 4), serving.max_batch})
    return {"preferred_batch_size": preferred, "max_queue_delay_microseconds": _QUEUE_DELAY_US}


def _warmup(given: Tensors) -> Message:
    inputs = {name: {"data_type": _type(kind), "dims": dims, "zero_data": True} for name, (kind, dims) in given.items()}
    return {"name": "zeros", "batch_size": 1, "inputs": entries(inputs)}


def _type(kind: str) -> Symbol:
    return Symbol(f"TYPE_{kind}")


Message = Mapping[str, Any]
"""Field -> a string, number, bool, Symbol or Message, or a list of one of these for a repeated field."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """The name of an enumeration's value, which is written without quotes."""

    name: str


def text(message: Message) -> str:
    """The message, a field a line, nested ones indented."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def entries(values: Mapping[str, Any]) -> list[Message]:
    """A map field: one message of key and value each."""
    return [{"key": key, "value": value} for key, value in values.items()]


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
    # JSON's strings, numbers and truth values are the text format's, too, but for characters written as two escapes.
    return value.name if isinstance(value, Symbol) else json.dumps(value, ensure_ascii=False)

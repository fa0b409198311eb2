"""config.pbtxt of the three models and of the ensemble that chains them (Triton's model_config.proto)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mdmf_deploy.bundle.manifest import Manifest
from mdmf_deploy.triton_repository.preprocessing import CROPS, IMAGES
from mdmf_deploy.triton_repository.reduction import CONTRIBUTIONS, P_VALUE, SCORE, SIGNATURES
from mdmf_deploy.triton_repository.serving import Serving
from mdmf_deploy.triton_repository.text_format import Message, Symbol, entries

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

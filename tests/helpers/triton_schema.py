"""The part of Triton's model_config.proto that repositories use, for protobuf's own parser of its text format.

Text has no field numbers, so they are made up here. Names, types and structure are Triton's.
tests/tasks/triton/test_config.py compares them with tritonclient's where that is installed.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

_DATA_TYPES = ["TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_INT32", "TYPE_INT64", "TYPE_FP32", "TYPE_FP64"]
ENUMS = {"DataType": _DATA_TYPES, "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU"]}
# "*" marks a repeated field, "string>X" a map.
MESSAGES: dict[str, dict[str, str]] = {
    "ModelConfig": {
        "name": "string",
        "platform": "string",
        "max_batch_size": "int32",
        "input": "*ModelInput",
        "output": "*ModelOutput",
        "version_policy": "ModelVersionPolicy",
        "instance_group": "*ModelInstanceGroup",
        "dynamic_batching": "ModelDynamicBatching",
        "ensemble_scheduling": "ModelEnsembling",
        "optimization": "ModelOptimizationPolicy",
        "model_warmup": "*ModelWarmup",
        "parameters": "string>ModelParameter",
    },
    "ModelInput": {"name": "string", "data_type": "DataType", "dims": "*int64"},
    "ModelOutput": {"name": "string", "data_type": "DataType", "dims": "*int64"},
    "ModelVersionPolicy": {"latest": "Latest"},
    "Latest": {"num_versions": "uint32"},
    "ModelInstanceGroup": {"kind": "Kind", "count": "int32"},
    "ModelDynamicBatching": {"preferred_batch_size": "*int32", "max_queue_delay_microseconds": "uint64"},
    "ModelEnsembling": {"step": "*Step"},
    "Step": {
        "model_name": "string",
        "model_version": "int64",
        "input_map": "string>string",
        "output_map": "string>string",
    },
    "ModelOptimizationPolicy": {"execution_accelerators": "ExecutionAccelerators"},
    "ExecutionAccelerators": {"gpu_execution_accelerator": "*Accelerator"},
    "Accelerator": {"name": "string", "parameters": "string>string"},
    "ModelWarmup": {"name": "string", "batch_size": "uint32", "inputs": "string>Input"},
    "Input": {"data_type": "DataType", "dims": "*int64", "zero_data": "bool"},
    "ModelParameter": {"string_value": "string"},
}


def parse(text: str) -> Any:
    """Parse a ModelConfig. Like Triton, raises text_format.ParseError for unknown fields and wrong types."""
    return text_format.Parse(text, _MODEL_CONFIG())


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="model_config_part.proto", package="part", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            if kind.startswith("string>"):
                entry = message.nested_type.add(name=f"{field.title().replace('_', '')}Entry")
                entry.options.map_entry = True
                _add(entry, "key", 1, "string")
                _add(entry, "value", 2, kind.removeprefix("string>"))
                kind = f"*{name}.{entry.name}"
            _add(message, field, number, kind)
    return file


def _add(message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=number, label=kinds.LABEL_OPTIONAL)
    if kind.startswith("*"):
        field.label, kind = kinds.LABEL_REPEATED, kind[1:]
    if kind in ENUMS or kind in MESSAGES or "." in kind:
        field.type = kinds.TYPE_ENUM if kind in ENUMS else kinds.TYPE_MESSAGE
        field.type_name = f".part.{kind}"
    else:
        field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")


def _model_config() -> type[Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("part.ModelConfig"))


_MODEL_CONFIG = _model_config()

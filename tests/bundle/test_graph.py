"""Only a graph that `mdmf export` writes passes, and no bytes at all cost more than a line."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from helpers.handmade import CROP, GRAPH, POOL, WIDTH, manifest
from helpers.mutations import mutated
from helpers.small_graphs import field, varint
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.graph import OPERATORS, check_graph
from mdmf_deploy.bundle.manifest import MODEL, MODEL_DATA, FileEntry, Manifest
from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.errors import BundleError
from mdmf_deploy.runtime import torch_operators

BESIDE = 1000  # bytes in model.onnx.data
Change = Callable[[onnx.ModelProto], None]


def refusal(data: bytes, expected: Manifest | None = None) -> str | None:
    """Return the one line that refuses these bytes, or None if they pass."""
    try:
        check_graph(data, expected or manifest(), f"b.mdmf/{MODEL}")
    except BundleError as error:
        refused = str(error)
    else:
        return None
    assert refused.startswith(f"b.mdmf/{MODEL}: ")
    assert refused.isprintable()
    return refused


def changed(change: Change, expected: Manifest | None = None) -> str | None:
    model = onnx.load_model_from_string(GRAPH)
    change(model)
    return refusal(model.SerializeToString(), expected)


def with_data() -> Manifest:
    """Return a manifest that lists model.onnx.data."""
    return msgspec.structs.replace(
        manifest(), files={**manifest().files, MODEL_DATA: FileEntry(sha256="0" * 64, size=BESIDE)}
    )


def node(operator: str, inputs: Sequence[str] = ("cells",), **attributes: Any) -> Change:
    return lambda model: model.graph.node.append(helper.make_node(operator, inputs, ["more"], **attributes))


def body() -> onnx.GraphProto:
    return helper.make_graph([], "body", [], [])


def beside(**entries: str) -> Change:
    """Move the values of "shape" to another file, as these entries say."""

    def change(model: onnx.ModelProto) -> None:
        [found] = [one for one in model.graph.initializer if one.name == "shape"]
        found.ClearField("raw_data")
        found.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            found.external_data.add(key=key, value=value)

    return change


def value(
    shape: Sequence[int | str | None], kind: int = TensorProto.FLOAT, name: str = "images"
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def end(which: str, *values: onnx.ValueInfoProto) -> Change:
    def change(model: onnx.ModelProto) -> None:
        del getattr(model.graph, which)[:]
        getattr(model.graph, which).extend(values)

    return change


def constant(tensor: onnx.TensorProto) -> Change:
    return lambda model: model.graph.node.append(helper.make_node("Constant", [], ["more"], value=tensor))


def test_graphs_of_exports_pass(tiny_bundle: Any, tiny_quantised: onnx.ModelProto) -> None:
    assert refusal(GRAPH) is None
    tiny = Bundle.open(tiny_bundle)
    assert refusal(tiny.model_path.read_bytes(), tiny.manifest) is None
    assert refusal(tiny_quantised.SerializeToString(), tiny.manifest) is None
    for name in ("starter", "dinov2s"):
        shipped = Bundle.open(name)
        assert refusal(shipped.model_path.read_bytes(), shipped.manifest) is None


def test_what_pytorch_runs_may_be_in_a_graph_and_what_loops_may_not() -> None:
    assert torch_operators.OPERATORS.keys() <= OPERATORS
    assert not OPERATORS & {"Loop", "If", "Scan", "SequenceMap", "ConstantOfShape", "Tile", "Range", "Resize", "Pad"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (node("Loop", ["", ""], body=body()), "the operator 'Loop'"),
        (node("If", then_branch=body(), else_branch=body()), "the operator 'If'"),
        (node("Scan", body=body(), num_scan_inputs=1), "the operator 'Scan'"),
        (node("SequenceMap", body=body()), "the operator 'SequenceMap'"),
        (node("Relu", body=body()), "field 6 of type 2 in its attribute"),
        (node("Relu", bodies=[body()]), "field 11 of type 2 in its attribute"),
        (node("Relu", domain="com.example"), "the operator 'com.example.Relu'"),
        (node("EPContext", domain="com.microsoft"), "the operator 'com.microsoft.EPContext'"),
        (node("Relu", overload="other"), "the operator 'Relu'"),
        (node("Re\nlu\x1b[2J"), r"the operator 'Re\\nlu\\x1b[2J'"),
        (node("R" * 2000), "a name of 2000 bytes"),
        (lambda model: model.opset_import.add(domain="com.example", version=1), "operators of '', 'com.example'"),
        (lambda model: model.ClearField("opset_import"), "operators of no set"),
        (lambda model: model.functions.add(name="Relu", domain=""), "field 25 of type 2 in its model"),
        (lambda model: model.training_info.add(), "field 20 of type 2 in its model"),
        (lambda model: model.graph.sparse_initializer.add(), "field 15 of type 2 in its graph"),
        (lambda model: model.ClearField("graph"), "it holds no graph"),
        (constant(helper.make_tensor("c", TensorProto.STRING, [1], [b"a"])), "field 6 of type 2 in its tensor"),
        (constant(TensorProto(data_type=1, data_location=1)), "'', a constant with its values in another file"),
        (node("Relu", value=helper.make_tensor("c", 1, [1], [0.0])), "Relu with a tensor in an attribute"),
    ],
)
def test_a_graph_that_does_more_than_an_export_is_refused(change: Change, message: str) -> None:
    assert message.replace("\\\\", "\\") in (changed(change) or "passes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (end("input"), "0 inputs, expected 'images' (any, 3, 56, 56)"),
        (end("input", value(["batch", 3, 56, 56]), value([1], name="more")), "2 inputs"),
        (end("input", value(["batch", 3, 70, 70])), "'images' (any, 3, 70, 70), expected 'images' (any, 3, 56, 56)"),
        (end("input", value([8, 3, 56, 56])), "'images' (8, 3, 56, 56)"),
        (end("input", value(["batch", 3, 56, "wide"])), "'images' (any, 3, 56, any)"),
        (end("input", value(["batch", 3, 56, 56], TensorProto.DOUBLE)), "of type 11"),
        (end("input", value(["batch", 3, 56, 56], name="input")), "'input'"),
        (end("input", helper.make_tensor_sequence_value_info("images", 1, [1])), "field 4 of type 2 in its type"),
        (end("input", onnx.ValueInfoProto(name="images")), "'images' () of type 0"),
        (end("output"), "0 outputs, expected 'signatures' (any, 4, 4)"),
        (
            end("output", value(["b", 4, 4], name="signatures"), value(["b"], name="rows")),
            "2 outputs, expected 'signatures' (any, 4, 4)",
        ),
        (end("output", value(["b", 9, 4], name="signatures")), "'signatures' (any, 9, 4)"),
        (end("output", value(["b", 4, 8], name="signatures")), "'signatures' (any, 4, 8)"),
        (end("output", value(["b", 4, 4], TensorProto.FLOAT16, "signatures")), "of type 10"),
        (end("output", value([1] * 50, name="signatures")), "'signatures' (1, 1, 1,"),
    ],
)
def test_other_inputs_and_outputs_than_the_manifests_are_refused(change: Change, message: str) -> None:
    assert message in (changed(change) or "passes")


def test_a_manifest_of_another_model_is_refused() -> None:
    card = manifest().model
    for model in (msgspec.structs.replace(card, pool=POOL + 1), msgspec.structs.replace(card, signature=WIDTH + 1)):
        assert "the output" in (refusal(GRAPH, manifest(model=model)) or "passes")
    larger = manifest(preprocessing=Preprocessing(crop=CROP + 14))
    assert "the input" in (refusal(GRAPH, larger) or "passes")


# "shape" holds three 64-bit numbers.
FITS = {"location": MODEL_DATA, "offset": "0", "length": "24"}


@pytest.mark.parametrize("entries", [FITS, {"location": MODEL_DATA}, FITS | {"offset": str(BESIDE - 24)}])
def test_weights_may_lie_in_the_file_that_the_manifest_lists(entries: dict[str, str]) -> None:
    assert changed(beside(**entries), with_data()) is None
    assert "which the manifest does not list" in (changed(beside(**entries)) or "passes")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "/etc/passwd"}, "read from '/etc/passwd'"),
        ({"location": "../model.onnx.data"}, "read from '../model.onnx.data'"),
        ({"location": "./model.onnx.data"}, "read from './model.onnx.data'"),
        ({"location": "MODEL.ONNX.DATA"}, "read from 'MODEL.ONNX.DATA'"),
        ({"location": "bank.safetensors"}, "read from 'bank.safetensors'"),
        ({"location": ""}, "read from ''"),
        ({}, "read from ''"),
        (FITS | {"offset": str(BESIDE - 23)}, "read beyond the end of model.onnx.data, which has 1000 bytes"),
        (FITS | {"offset": str(2**64)}, "bytes at '18446744073709551616'"),
        (FITS | {"offset": "-1"}, "bytes at '-1'"),
        (FITS | {"offset": "1e1"}, "bytes at '1e1'"),
        (FITS | {"offset": "٣"}, "bytes at '٣'"),
        (FITS | {"length": "-24"}, "of '-24' bytes"),
        (FITS | {"length": "16"}, "of '16' bytes"),
    ],
)
def test_weights_elsewhere_are_refused(entries: dict[str, str], message: str) -> None:
    assert message in (changed(beside(**entries), with_data()) or "passes")


def test_weights_in_two_places_are_refused() -> None:
    def twice(model: onnx.ModelProto) -> None:
        beside(**FITS)(model)
        model.graph.initializer[-1].external_data.add(key="location", value="elsewhere")

    def both(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].external_data.add(key="location", value=MODEL_DATA)

    assert "with two values of 'location'" in (changed(twice, with_data()) or "passes")
    assert "with its values in two places" in (changed(both, with_data()) or "passes")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorProto(name="w", data_type=1, dims=[2**62, 4], raw_data=bytes(8)), "asks for 73786976294838206464"),
        (TensorProto(name="w", data_type=1, dims=[3], raw_data=bytes(8)), "'w' of 8 bytes"),
        (TensorProto(name="w", data_type=1, dims=[-1], raw_data=bytes(4)), "of a negative shape"),
        (TensorProto(name="w", data_type=1, dims=[1] * 9, raw_data=bytes(4)), "more than 8 dimensions"),
        (TensorProto(name="w", data_type=1, dims=[2**40], float_data=[1.0]), "fewer values than its shape asks for"),
        (TensorProto(name="w", data_type=8, dims=[0]), "'w' of type 8"),
        (TensorProto(name="w", data_type=2**31 - 1, dims=[0]), "'w' of type 2147483647"),
    ],
)
def test_a_tensor_has_the_values_that_its_shape_asks_for(tensor: TensorProto, message: str) -> None:
    assert message in (changed(lambda model: model.graph.initializer.append(tensor)) or "passes")


def nested(depth: int) -> bytes:
    """Return graphs in attributes of nodes in graphs."""
    data = b""
    for _ in range(depth):
        data = field(1, field(5, field(1, "g") + field(6, data) + field(20, 5)) + field(4, "Loop"))
    return field(7, data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "operators of no set"),
        (b"\x80", "it ends in the middle of a number"),
        (b"\x08", "it ends in the middle of a number"),
        (b"\x08" + b"\xff" * 20, "a number beyond 64 bits"),
        (b"\x08" + b"\xff" * 9 + b"\x7f", "a number beyond 64 bits"),
        (varint(7 << 3 | 2) + varint(2**31 - 1), "a length of 2147483647 bytes in its model, of which 0 are there"),
        (varint(7 << 3 | 2) + varint(2**64 - 1), "a length of 18446744073709551615 bytes"),
        (varint(7 << 3 | 3), "field 7 of type 3"),
        (varint(0) + b"\0", "field 0 of type 0"),
        (varint(2**40) + b"\0", "of type 0 in its model"),
        (field(1, 8) + field(1, 8), "field 1 twice in its model"),
        (GRAPH + field(7, b""), "field 7 twice in its model"),
        (GRAPH + field(2, b"\xff"), None),
        (field(8, field(1, b"\xff")), "a name that is no UTF-8"),
        (field(8, b"") + nested(200), "the operator 'Loop'"),
        (field(8, b"") + field(7, field(13, b"") * 200_000), "more fields than any graph needs"),
    ],
)
def test_bytes_that_are_no_graph_are_refused_in_one_line(data: bytes, message: str | None) -> None:
    assert (message is None) is (refusal(data) is None)
    assert message is None or message in str(refusal(data))


def test_a_type_beyond_32_bits_does_not_wrap_round_to_an_external_one() -> None:
    """Protobuf cuts an enum to 32 bits: 2^32 + 1 is EXTERNAL to a runtime."""
    tensor = field(2, 1) + field(8, "w") + field(13, field(1, "location") + field(2, "/etc/passwd"))
    graph = field(5, tensor + field(14, 2**32 + 1))
    assert "with its values in two places" in str(refusal(field(8, b"") + field(7, graph)))


@settings(max_examples=60, deadline=None, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_damaged_graph_is_refused_or_still_says_what_the_manifest_says(seed: int) -> None:
    _, data = mutated(GRAPH, [GRAPH], np.random.default_rng(seed))
    if refusal(data) is None:
        try:
            model = onnx.load_model_from_string(data)
        except Exception:
            # Texts that nothing here reads need not be UTF-8. The runtime refuses them.
            return
        assert {one.op_type for one in model.graph.node} <= OPERATORS
        assert not any(one.external_data for one in model.graph.initializer)
        assert [[one.name for one in ends] for ends in (model.graph.input, model.graph.output)] == [
            ["images"],
            ["signatures"],
        ]


@settings(max_examples=60, deadline=None, database=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_cost_a_line(data: bytes) -> None:
    assert refusal(data) is not None
    assert refusal(field(8, b"") + field(7, data)) is not None


def test_packed_and_single_numbers_are_the_same_shape() -> None:
    packed = field(1, varint(2) + varint(3))
    single = field(1, 2) + field(1, 3)
    for dims in (packed, single):
        weights = dims + field(2, 1) + field(9, struct.pack("<6f", *range(6)))
        # Its shape passes, and then the graph lacks an input.
        assert "0 inputs" in str(refusal(field(8, b"") + field(7, field(5, weights))))

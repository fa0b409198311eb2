"""Check a bundle's ONNX graph before any runtime reads it, without the package onnx.

A graph may be from anyone, and a runtime does all that it says: it reads other files as weights, loops without end, or
computes another model than the manifest describes. So only what `mdmf export` writes is accepted: one input, one
output, the operators of a vision transformer and its head, and weights in the file itself or in model.onnx.data.
Field numbers are those of onnx/onnx.proto3 (ONNX 1.22).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mdmf_deploy.bundle.manifest import INPUT, MODEL_DATA, OUTPUT, Manifest
from mdmf_deploy.bundle.protobuf import BYTES, FOUR, VARINT, Kind, Malformed, Message, Place, Reader
from mdmf_deploy.errors import BundleError
from mdmf_deploy.text import one_line

# Those that exports hold, or held with other versions of PyTorch. None of them has a graph inside, runs more than once,
# or makes a large tensor of a few numbers. Expand does, but every vision transformer repeats its class token by it.
_OPERATORS = """
    Abs Add Attention Cast Clip Concat Constant Conv DequantizeLinear Div Erf Exp Expand Flatten Gather Gelu Gemm
    Identity LayerNormalization Log MatMul Max Min Mul Neg Pow QuantizeLinear Reciprocal ReduceL2 ReduceMean ReduceSum
    Relu Reshape Shape Sigmoid Slice Softmax Softplus Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze Where
"""
OPERATORS = frozenset(_OPERATORS.split())
_DOMAINS = ("", "ai.onnx")
# TensorProto.DataType -> bytes of one element. Texts, complex numbers and types of less than a byte are refused.
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
_FLOAT = 1
_EXTERNAL = 1
# AttributeProto.AttributeType: FLOAT, INT, STRING, TENSOR, FLOATS, INTS, STRINGS. The others hold graphs or types.
_ATTRIBUTES = frozenset({1, 2, 3, 4, 6, 7, 8})
_TENSOR = 4

# DINOv2's largest model has 60,000 fields in int8.
_MOST_FIELDS = 200_000
_LONGEST_NAME = 1000
_MOST_DIMENSIONS = 8
_SHOWN = 60
_NUMBER = re.compile(r"[0-9]{1,18}")


def _kind(name: str, *, once: str = "", numbers_once: str = "", repeated: str = "") -> Kind:
    """Return a kind of message from the numbers of its fields. All but numbers_once are bytes."""
    fields = {int(number): BYTES for number in once.split()} | {int(number): VARINT for number in numbers_once.split()}
    return Kind(name, fields, [(int(number), BYTES) for number in repeated.split()])


# Left out are training_info, functions and configuration of a model, sparse initializers of a graph, the devices of a
# node, graphs, types and references in an attribute, and segments and texts of a tensor.
_MODEL = _kind("model", once="2 3 4 6 7", numbers_once="1 5", repeated="8 14")
_OPSET = _kind("operator set", once="1", numbers_once="2")
_GRAPH = _kind("graph", once="2 10", repeated="1 5 11 12 13 14 16")
_NODE = _kind("node", once="3 4 6 7 8", repeated="1 2 5 9")
_ATTRIBUTE = Kind(
    "attribute",
    {1: BYTES, 2: FOUR, 3: VARINT, 4: BYTES, 5: BYTES, 13: BYTES, 20: VARINT},
    [(7, BYTES), (7, FOUR), (8, BYTES), (8, VARINT), (9, BYTES)],
)
_WEIGHTS = Kind(
    "tensor",
    {2: VARINT, 8: BYTES, 9: BYTES, 12: BYTES, 14: VARINT},
    [
        *((n, BYTES) for n in (1, 4, 5, 7, 10, 11, 13, 16)),
        *((n, VARINT) for n in (1, 5, 7, 11)),
        (4, FOUR),
        (10, 1),
    ],
)
_ENTRY = _kind("entry", once="1 2")
_VALUE = _kind("input or output", once="1 2 3", repeated="4")
_TYPE = _kind("type", once="1 6")
_TENSOR_TYPE = _kind("tensor type", once="2", numbers_once="1")
_SHAPE = _kind("shape", repeated="1")
_DIMENSION = _kind("dimension", once="2 3", numbers_once="1")


class _Value(NamedTuple):
    """An input or output: its name, TensorProto.DataType, and dimensions, of which None may have any length."""

    name: str
    type: int
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        shape = ", ".join("any" if length is None else str(length) for length in self.shape)
        return f"{_shown(self.name)} ({shape}){'' if self.type == _FLOAT else f' of type {self.type}'}"


def check_graph(data: bytes, manifest: Manifest, path: str) -> None:
    """Check the bytes of model.onnx.

    manifest: of its bundle. Input and output must be as its model card and crop say, and model.onnx.data, if weights
        lie there, must be listed in it.
    path: names the file in the message.
    Raises BundleError if a runtime should not read these bytes. Takes about 3 ms for each MB of structure, whatever
    the weights' size.
    """
    try:
        _Check(data, manifest).model()
    except Malformed as error:
        raise BundleError(
            f"{path}: is not a graph that `mdmf export` writes: {one_line(str(error))}; do not trust this bundle, "
            "or export it again"
        ) from error


class _Check:
    """One graph's check. Every method raises Malformed."""

    def __init__(self, data: bytes, manifest: Manifest) -> None:
        self._reader = Reader(data, _MOST_FIELDS)
        self._card, self._crop = manifest.model, manifest.preprocessing.crop
        weights = manifest.files.get(MODEL_DATA)
        self._beside = None if weights is None else weights.size

    def model(self) -> None:
        model = self._reader.message(_MODEL)
        opsets = [self._reader.message(_OPSET, place) for place in model.places(8)]
        domains = [self._name(opset.place(1)) for opset in opsets]
        if len(domains) != 1 or domains[0] not in _DOMAINS:
            raise Malformed(f"operators of {', '.join(map(_shown, domains)) or 'no set'}, expected ONNX's own alone")
        if model.place(7) is None:
            raise Malformed("it holds no graph")
        graph = self._reader.message(_GRAPH, model.place(7))
        for place in graph.places(1):
            self._node(self._reader.message(_NODE, place))
        for place in graph.places(5):
            self._weights(self._reader.message(_WEIGHTS, place), external=True)
        self._ends("input", graph.places(11), _Value(INPUT, _FLOAT, (None, 3, self._crop, self._crop)))
        patches = self._card.pool**2
        self._ends("output", graph.places(12), _Value(OUTPUT, _FLOAT, (None, patches, self._card.signature)))

    def _node(self, node: Message) -> None:
        domain, operator = self._name(node.place(7)), self._name(node.place(4))
        if domain not in _DOMAINS or operator not in OPERATORS or self._name(node.place(8)):
            raise Malformed(f"the operator {_shown(f'{domain}.{operator}' if domain else operator)}")
        for place in node.places(5):
            attribute = self._reader.message(_ATTRIBUTE, place)
            kind = attribute.integer(20)
            if kind not in _ATTRIBUTES:
                raise Malformed(f"{operator} with an attribute of type {kind}")
            if (kind == _TENSOR) != (5 in attribute) or (kind == _TENSOR and operator != "Constant"):
                raise Malformed(f"{operator} with a tensor in an attribute")
            if kind == _TENSOR:
                self._weights(self._reader.message(_WEIGHTS, attribute.place(5)), external=False)

    def _weights(self, tensor: Message, *, external: bool) -> None:
        """Check that a tensor has as many bytes as its shape asks for, and that they lie in a file of the bundle."""
        name = _shown(self._name(tensor.place(8)))
        size = _SIZES.get(tensor.integer(2))
        if size is None:
            raise Malformed(f"{name} of type {tensor.integer(2)}")
        needed = size
        for length in self._reader.integers(tensor.all(1), _MOST_DIMENSIONS):
            if length < 0:
                raise Malformed(f"{name} of a negative shape")
            needed *= length
        if tensor.integer(14) == _EXTERNAL:
            if not external:
                raise Malformed(f"{name}, a constant with its values in another file")
            self._lies_beside(tensor, name, needed)
        elif tensor.integer(14) or 13 in tensor:
            raise Malformed(f"{name}, with its values in two places")
        elif (raw := tensor.place(9)) is not None:
            if raw[1] - raw[0] != needed:
                raise Malformed(f"{name} of {raw[1] - raw[0]} bytes, where its shape asks for {needed}")
        elif needed // size > _most_values(tensor):
            raise Malformed(f"{name} of fewer values than its shape asks for")

    def _lies_beside(self, tensor: Message, name: str, needed: int) -> None:
        entries: dict[str, str] = {}
        for place in tensor.places(13):
            entry = self._reader.message(_ENTRY, place)
            key = self._name(entry.place(1))
            if key in entries:
                raise Malformed(f"{name} with two values of {_shown(key)}")
            entries[key] = self._name(entry.place(2))
        location = entries.get("location", "")
        if location != MODEL_DATA:
            raise Malformed(f"{name} read from {_shown(location)}, and weights may lie in {MODEL_DATA} alone")
        if self._beside is None:
            raise Malformed(f"{name} read from {MODEL_DATA}, which the manifest does not list")
        offset, length = entries.get("offset", "0"), entries.get("length", str(needed))
        if not (_NUMBER.fullmatch(offset) and _NUMBER.fullmatch(length)) or int(length) != needed:
            raise Malformed(f"{name} of {_shown(length)} bytes at {_shown(offset)}, where its shape asks for {needed}")
        if int(offset) + needed > self._beside:
            raise Malformed(f"{name} read beyond the end of {MODEL_DATA}, which has {self._beside} bytes")

    def _ends(self, what: str, places: list[Place], expected: _Value) -> None:
        if len(places) != 1:
            raise Malformed(f"{len(places)} {what}s, expected {expected}")
        found = self._value(self._reader.message(_VALUE, places[0]))
        if found != expected:
            raise Malformed(f"the {what} {found}, expected {expected} from the manifest")

    def _value(self, value: Message) -> _Value:
        name = self._name(value.place(1))
        # A type that is no tensor's is a field that its kind refuses.
        kind = self._reader.message(_TYPE, value.place(2) or (0, 0))
        tensor = self._reader.message(_TENSOR_TYPE, kind.place(1) or (0, 0))
        shape = self._reader.message(_SHAPE, tensor.place(2) or (0, 0))
        dimensions = [self._reader.message(_DIMENSION, place) for place in shape.places(1)[: _MOST_DIMENSIONS + 1]]
        if any(1 in one and 2 in one for one in dimensions):
            raise Malformed(f"{_shown(name)} with two lengths of one dimension")
        return _Value(name, tensor.integer(1), tuple(one.integer(1) if 1 in one else None for one in dimensions))

    def _name(self, place: Place | None) -> str:
        return self._reader.text(place, _LONGEST_NAME)


def _most_values(tensor: Message) -> int:
    """Return a bound on the number of a tensor's values that lie in fields of their own type."""
    values = [value for number in (4, 5, 7, 10, 11) for value in tensor.all(number)]
    # A packed value takes at least one byte.
    return sum(1 if isinstance(value, int) else value[1] - value[0] for value in values)


def _shown(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")

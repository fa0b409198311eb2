"""Graphs written by hand: standard ONNX operators of one opset, old enough for the servers in use."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

# No newer than the graphs of the bundles themselves.
OPSET, IR_VERSION = 17, 8


class Value(NamedTuple):
    """An input or output: shape None is any, a name in it a dimension that is free."""

    name: str
    type: int
    shape: tuple[int | str, ...] | None


class Graph:
    """Nodes and constants as they are written; a value is its name."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def constant(self, value: NDArray[Any] | np.generic, name: str | None = None) -> str:
        """An initializer; without a name it gets one."""
        name = name or f"{self._prefix}constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        """A node with one output, which is called `to`."""
        output = to or f"{self._prefix}{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def cast(self, value: str, type: int, to: str | None = None) -> str:
        # The attribute has the name of the output's parameter.
        output = to or f"{self._prefix}cast_{len(self._nodes)}"
        self._nodes.append(helper.make_node("Cast", [value], [output], name=output, to=type))
        return output

    def body(self, name: str, inputs: list[Value], outputs: list[Value]) -> GraphProto:
        """As the graph of a model, or of an operator that has one."""
        return helper.make_graph(self._nodes, name, _described(inputs), _described(outputs), self._constants)

    def model(self, name: str, inputs: list[Value], outputs: list[Value], metadata: dict[str, str]) -> ModelProto:
        """The whole, checked, with metadata embedded."""
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(self.body(name, inputs, outputs), opset_imports=opsets, ir_version=IR_VERSION)
        helper.set_model_props(model, metadata)
        checker.check_model(model, full_check=True)
        return model


def _described(values: list[Value]) -> list[ValueInfoProto]:
    return [helper.make_tensor_value_info(*value) for value in values]

"""Merge operators of a graph where one PyTorch function does the work of several in fewer passes over memory.

Only exact matches of the forms that `mdmf export` writes are merged. Everything else stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Node(NamedTuple):
    """One operator of a graph. Every input and output is a tensor's name, "" for one that is left out."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


def merge_quantisers(nodes: Sequence[Node], known: Mapping[str, Tensor]) -> list[Node]:
    """Merge each QuantizeLinear with the one DequantizeLinear that undoes it. The bits stay the same."""
    graph = _Graph(nodes, known)
    for node in nodes:
        undone = graph.only_user(node.outputs[0])
        if node.kind == "QuantizeLinear" and undone is not None and undone.kind == "DequantizeLinear":
            scales = [known.get(one.inputs[1]) for one in (node, undone)]
            if scales[0] is not None and scales[1] is not None and torch.equal(scales[0], scales[1]):
                graph.replace([node, undone], Node("FakeQuantize", node.inputs[:2], undone.outputs, {}))
    return graph.result()


def merge_for_speed(nodes: Sequence[Node], known: Mapping[str, Tensor], types: Mapping[str, torch.dtype]) -> list[Node]:
    """Merge float16 attention, GELU by the error function, and biases. Roundings between the merged operators go.

    types: of every value that is not known.
    """
    for merge in (_attention, _gelu, _bias):
        graph = _Graph(nodes, known)
        for node in nodes:
            merge(graph, node, types)
        nodes = graph.result()
    return list(nodes)


class _Graph:
    """Nodes in order, with the edges between them.

    known: the values that are constants.
    """

    def __init__(self, nodes: Sequence[Node], known: Mapping[str, Tensor]) -> None:
        self.known = known
        self._nodes = list(nodes)
        self._made_by = {name: node for node in nodes for name in node.outputs}
        self._users: dict[str, list[Node]] = {}
        for node in nodes:
            for name in node.inputs:
                self._users.setdefault(name, []).append(node)
        self._gone: set[str] = set()
        self._new: dict[str, Node] = {}

    def only_user(self, name: str) -> Node | None:
        """Return the node that takes this value, if there is exactly one and it takes it once."""
        users = self._users.get(name, [])
        return users[0] if len(users) == 1 else None

    def maker(self, name: str, kind: str) -> Node | None:
        """Return the node that makes this value, if it is of this kind and nothing else takes the value."""
        node = self._made_by.get(name)
        return node if node is not None and node.kind == kind and self.only_user(name) is not None else None

    def before_casts(self, name: str) -> tuple[str, list[Node]]:
        """Return the value that casts turn into this one, and the casts that only this one needs."""
        casts = []
        while (cast := self.maker(name, "Cast")) is not None:
            casts.append(cast)
            name = cast.inputs[0]
        return name, casts

    def after_casts(self, name: str) -> tuple[str, list[Node]]:
        """Return the value into which casts turn this one, and the casts."""
        casts = []
        while (cast := self.only_user(name)) is not None and cast.kind == "Cast":
            casts.append(cast)
            name = cast.outputs[0]
        return name, casts

    def is_number(self, name: str, number: float) -> bool:
        """Return whether the value is one constant number, as its own type rounds it."""
        value = self.known.get(name)
        return value is not None and value.numel() == 1 and torch.equal(value.cpu().reshape(()), _like(value, number))

    def replace(self, old: Sequence[Node], new: Node) -> None:
        """Put `new` in the place of the last of the old nodes, whose outputs it has."""
        self._gone.update(node.outputs[0] for node in old)
        self._new[old[-1].outputs[0]] = new

    def result(self) -> list[Node]:
        return list(self._left())

    def _left(self) -> Iterator[Node]:
        for node in self._nodes:
            name = node.outputs[0]
            if name in self._new:
                yield self._new[name]
            elif name not in self._gone:
                yield node


def _like(value: Tensor, number: float) -> Tensor:
    return torch.tensor(number, dtype=value.dtype)


def _attention(graph: _Graph, softmax: Node, types: Mapping[str, torch.dtype]) -> None:
    """Softmax(q k) v with q, k and v in float16. In float32, PyTorch's kernels may round more than the graph does."""
    if softmax.kind != "Softmax" or softmax.attributes.get("axis", -1) != -1:
        return
    scores, casts_before = graph.before_casts(softmax.inputs[0])
    product = graph.maker(scores, "MatMul")
    shares, casts_after = graph.after_casts(softmax.outputs[0])
    last = graph.only_user(shares)
    if product is None or last is None or last.kind != "MatMul" or last.inputs[0] != shares:
        return
    (q, casts_q), (k, casts_k) = (graph.before_casts(name) for name in product.inputs)
    v = last.inputs[1]
    if any(types.get(name) != torch.float16 for name in (q, k, v)):
        return
    old = [*casts_q, *casts_k, product, *casts_before, softmax, *casts_after, last]
    graph.replace(old, Node("ScaledAttention", (q, k, v), last.outputs, {}))


def _gelu(graph: _Graph, erf: Node, types: Mapping[str, torch.dtype]) -> None:
    """x * (0.5 * (1 + erf(x / sqrt(2))))"""
    if erf.kind != "Erf":
        return
    scaled, casts_before = graph.before_casts(erf.inputs[0])
    divided = graph.maker(scaled, "Div")
    wide, casts_after = graph.after_casts(erf.outputs[0])
    added = graph.only_user(wide)
    if divided is None or added is None or added.kind != "Add":
        return
    halved = graph.only_user(added.outputs[0])
    last = None if halved is None or halved.kind != "Mul" else graph.only_user(halved.outputs[0])
    if halved is None or last is None or last.kind != "Mul":
        return
    x = divided.inputs[0]
    matches = (
        graph.is_number(divided.inputs[1], math.sqrt(2)),
        graph.is_number(added.inputs[1], 1.0) and added.inputs[0] == wide,
        graph.is_number(halved.inputs[0], 0.5) and halved.inputs[1] == added.outputs[0],
        last.inputs == (x, halved.outputs[0]),
        types.get(x) in (torch.float16, torch.float32),
    )
    if all(matches):
        old = [divided, *casts_before, erf, *casts_after, added, halved, last]
        graph.replace(old, Node("Gelu", (x,), last.outputs, {}))


def _bias(graph: _Graph, product: Node, types: Mapping[str, torch.dtype]) -> None:
    """x W + b with a matrix W and a vector b."""
    added = graph.only_user(product.outputs[0]) if product.kind == "MatMul" else None
    if added is None or added.kind != "Add" or added.inputs[0] != product.outputs[0]:
        return
    weight, bias = graph.known.get(product.inputs[1]), graph.known.get(added.inputs[1])
    if weight is not None and bias is not None and weight.dim() == 2 and bias.shape == weight.shape[1:]:
        names = (product.inputs[0], product.inputs[1], added.inputs[1])
        graph.replace([product, added], Node("Linear", names, added.outputs, {}))

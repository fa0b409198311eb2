"""An int8 graph any of whose layers can be put back to fp32, by graph surgery alone.

Quantising leaves every node of the fp32 graph in place, under its name and with its outputs; only inputs change (a
Q/DQ pair, a smoothed activation, a corrected bias).  So a layer is restored by giving it, and the node that adds its
bias, the fp32 graph's inputs back, and dropping what nothing uses any more.
Both graphs' weights are written once, to a file that every variant refers to: a variant costs a few hundred kilobytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from mdmf_deploy.errors import QuantisationError
from mdmf_deploy.tasks.export.save import save

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_WEIGHTS = "weights"
_SUFFIX = ".int8"


class Restorable:
    """An fp32 graph and its quantised twin, as one pool of nodes and weights to build variants from.

    layers: readable names of what is quantised, in the order in which the graph computes them.
    folder: an empty one, for the weights and the variants' files.
    Raises QuantisationError if the twin is more than the fp32 graph with changed inputs.
    """

    def __init__(self, fp32: Path, int8: ModelProto, folder: Path) -> None:
        original = onnx.load(fp32)
        self._folder = folder
        self._pool = _merge(original, int8)
        self._before = {node.name: node for node in original.graph.node}
        self._owners = _owners(self._before, self._pool.graph, fp32)
        self.layers: tuple[str, ...] = tuple(dict.fromkeys(name for name in self._owners.values() if name))
        onnx.save(
            self._pool, folder / _WEIGHTS, save_as_external_data=True, location=f"{_WEIGHTS}.data", size_threshold=4096
        )
        self._pool = onnx.load(folder / _WEIGHTS, load_external_data=False)

    def variant(self, kept: Collection[str], name: str) -> Path:
        """Write the graph with these layers in fp32, and all others in int8, to a file called name in the folder."""
        path = self._folder / name
        onnx.save(self._model(kept), path)
        return path

    def save(self, kept: Collection[str], destination: Path) -> Path:
        """Write that graph as a bundle takes it: with its own weights, sorted and checked."""
        return save(onnx.load(self.variant(kept, "final")), destination, "int8")

    def _model(self, kept: Collection[str]) -> ModelProto:
        model = ModelProto()
        model.CopyFrom(self._pool)
        for node in model.graph.node:
            owner = self._owners.get(node.name, node.name)
            if owner is None or owner in kept:
                node.input[:] = self._before[node.name].input
        _drop_unused(model.graph)
        return model


def _merge(fp32: ModelProto, int8: ModelProto) -> ModelProto:
    """The quantised graph with the fp32 weights beside its own; where one name has two values, int8's is renamed."""
    merged = ModelProto()
    merged.CopyFrom(int8)
    before = {tensor.name: tensor for tensor in fp32.graph.initializer}
    changed = {
        tensor.name
        for tensor in merged.graph.initializer
        if tensor.name in before and not _same(tensor, before[tensor.name])
    }
    for tensor in merged.graph.initializer:
        if tensor.name in changed:
            tensor.name += _SUFFIX
    for node in merged.graph.node:
        node.input[:] = [name + _SUFFIX if name in changed else name for name in node.input]
    present = {tensor.name for tensor in merged.graph.initializer}
    merged.graph.initializer.extend(tensor for name, tensor in before.items() if name not in present)
    # NNCF drops the shapes that tracing found, and onnxruntime fuses less, and other bits, without them.
    del merged.graph.value_info[:]
    merged.graph.value_info.extend(fp32.graph.value_info)
    return merged


def _same(a: TensorProto, b: TensorProto) -> bool:
    return (
        a.data_type == b.data_type
        and onnx.numpy_helper.to_array(a).tobytes() == onnx.numpy_helper.to_array(b).tobytes()
    )


def _owners(before: Mapping[str, NodeProto], graph: GraphProto, fp32: Path) -> dict[str, str | None]:
    """Changed node -> the layer it is restored with; None for one that is always restored, being no product itself."""
    missing = before.keys() - {node.name for node in graph.node}
    moved = [
        node.name for node in graph.node if node.name in before and list(node.output) != list(before[node.name].output)
    ]
    if missing or moved:
        raise QuantisationError(
            f"{fp32}: quantising changed {sorted([*missing, *moved])[0]}, and it can no longer be restored to fp32; "
            "export with --precision fp32"
        )
    names = _readable(list(before.values()))
    made_by = {output: node.name for node in before.values() for output in node.output}
    owners: dict[str, str | None] = {}
    for node in graph.node:
        if node.name not in before or list(node.input) == list(before[node.name].input):
            continue
        if node.op_type in _PRODUCTS:
            owners[node.name] = names[node.name]
        else:
            layers = [made_by.get(name, "") for name in before[node.name].input]
            owners[node.name] = next((names[name] for name in layers if name in owners and name in names), None)
    return owners


def _readable(nodes: list[NodeProto]) -> dict[str, str]:
    """Product's node name -> the module it comes from ("blocks.3.mlp.fc1"), by its parameter or its bias."""
    users: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    names: dict[str, str] = {}
    last = ""
    for node in nodes:
        if node.op_type not in _PRODUCTS:
            continue
        following = users.get(node.output[0], [])
        parameters = [name for user in (node, *following) for name in user.input]
        module = next((name.rpartition(".")[0] for name in parameters if name.startswith(("backbone.", "head."))), None)
        if module is None:
            scores = any(user.op_type == "Softmax" for user in following)
            module = f"{last.rpartition('.')[0]}.{'scores' if scores else node.name}"
        last = module
        name = module.removeprefix("backbone.")
        names[node.name] = name if name not in names.values() else f"{name} ({node.name})"
    return names


def _drop_unused(graph: GraphProto) -> None:
    """Remove nodes and weights that no output needs; nodes may stand in any order."""
    made_by = {output: node for node in graph.node for output in node.output}
    wanted, used = [output.name for output in graph.output], set()
    while wanted:
        name = wanted.pop()
        if name and name not in used:
            used.add(name)
            if name in made_by:
                wanted.extend(made_by[name].input)
    for node in [node for node in graph.node if not used.intersection(node.output)]:
        graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    for value in [value for value in graph.value_info if value.name not in used]:
        graph.value_info.remove(value)

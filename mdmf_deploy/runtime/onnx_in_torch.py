"""A bundle's ONNX graph, run by PyTorch operator by operator.

Any operator, attribute or value that torch_operators.py does not implement is an error, so that no graph runs with
another meaning than it was verified with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from mdmf_deploy.bundle.manifest import INPUT, OUTPUT
from mdmf_deploy.errors import BundleError, shortage
from mdmf_deploy.runtime.torch_merging import Node, merge_for_speed, merge_quantisers
from mdmf_deploy.runtime.torch_operators import APART, KNOWN_INTEGERS, MERGED, OPERATORS, SYMMETRIC, TYPES, Unsupported

OPSETS = range(18, 24)
_Known = dict[str, Tensor]


class Step(NamedTuple):
    """One call of a program: `run` takes the values of `inputs`, and after it nothing needs those of `finished`."""

    run: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    finished: tuple[str, ...]


class Program:
    """A graph for one batch size: images (B, 3, S, S) to signatures (B, N, d), float32, on the graph's device."""

    def __init__(self, known: _Known, steps: Sequence[Step]) -> None:
        self._known, self._steps = known, steps

    def __call__(self, images: Tensor) -> Tensor:
        values = self._known | {INPUT: images}
        for step in self._steps:
            result = step.run(*[values[name] for name in step.inputs])
            if len(step.outputs) == 1:
                values[step.outputs[0]] = result
            else:
                values.update(zip(step.outputs, result, strict=True))
            for name in step.finished:
                del values[name]
        return values[OUTPUT]


class OnnxGraph:
    """The graph in a file, with its weights on a device. Everything that depends on no image is computed once.

    device: as PyTorch names it, "cpu" or "cuda".
    merge: whether to merge operators for speed (torch_merging.py). A signature's last bits change.
    Raises BundleError if the file cannot be read, or holds anything that is not implemented.
    """

    def __init__(self, path: Path, device: str = "cpu", *, merge: bool = False) -> None:
        self._path, self._merge = path, merge
        try:
            model = onnx.load(path)
        # Damaged files raise protobuf's errors, missing weights those of onnx and of the system.
        except Exception as error:
            if (lacking := shortage(error)) is not None:
                raise lacking from error
            raise BundleError(
                f"{path}: onnx {onnx.__version__} cannot read it ({_first_line(error)}); upgrade onnx, or export the "
                "bundle again"
            ) from error
        versions = {one.domain: one.version for one in model.opset_import}
        if versions.keys() != {""} or versions[""] not in OPSETS:
            self._refuse(f"operator sets {versions}, expected one of {OPSETS[0]} to {OPSETS[-1]}")
        names = [[value.name for value in values] for values in (model.graph.input, model.graph.output)]
        if names != [[INPUT], [OUTPUT]]:
            self._refuse(f"inputs and outputs other than {INPUT!r} and {OUTPUT!r}")
        self._known = {tensor.name: self._weight(tensor, device) for tensor in model.graph.initializer}
        with torch.inference_mode():
            self._nodes = self._fold([self._node(node) for node in model.graph.node], self._known)

    def program(self, batch: int, image: Sequence[int], *, apart: bool = False) -> Program:
        """Return the graph for batches of exactly this many images of this shape, (3, S, S).

        apart: whether each image's rows are a matrix of their own in every product. Otherwise the rows of all images
        are one matrix, and a GPU's kernel may cut it into tiles that treat one image unlike another.
        """
        known = dict(self._known)
        with torch.inference_mode():
            shapes = {INPUT: torch.empty((batch, *image), device="meta")}
            nodes = merge_quantisers(self._fold(self._nodes, known, shapes), known)
            if self._merge:
                nodes = merge_for_speed(nodes, known, {name: shape.dtype for name, shape in shapes.items()})
            if apart:
                nodes = [node._replace(kind=APART.get(node.kind, node.kind)) for node in nodes]
        if OUTPUT not in shapes:
            self._refuse(f"a graph in which no operator makes {OUTPUT!r} from {INPUT!r}")
        steps, needed = [], {OUTPUT}
        for node in reversed(nodes):
            inputs = _tensors(node)
            finished = {name for name in (*inputs, *node.outputs) if name not in needed and name not in known}
            needed.update(inputs)
            steps.append(Step(self._bound(node, known), inputs, node.outputs, tuple(sorted(finished))))
        return Program({name: known[name] for name in known.keys() & needed}, steps[::-1])

    def _fold(self, nodes: Sequence[Node], known: _Known, shapes: _Known | None = None) -> list[Node]:
        """Compute each node whose inputs are known, add its results to `known`, and return the other nodes.

        shapes: the images on the device "meta", where PyTorch works out shapes and types alone. Given them, the shape
        of every value is known, and every node is tried.
        """
        left = []
        for node in nodes:
            inputs = _tensors(node)
            if all(name in known for name in node.inputs if name):
                known.update(zip(node.outputs, self._tried(node, known, known), strict=True))
            elif shapes is None:
                left.append(node)
            else:
                on_meta = shapes | {name: known[name].to("meta") for name in inputs if name in known}
                results = zip(node.outputs, self._tried(node, known, on_meta), strict=True)
                if node.kind == "Shape":
                    known.update(results)
                else:
                    shapes.update(results)
                    left.append(node)
        unused = known.keys() - {name for node in left for name in node.inputs}
        for name in unused:
            del known[name]
        return left

    def _tried(self, node: Node, known: _Known, values: _Known) -> Sequence[Tensor]:
        """Return the node's outputs. Raises BundleError if its function does not take these inputs."""
        run = self._bound(node, known)
        missing = [name for name in _tensors(node) if name not in values]
        if missing:
            self._refuse(f"{node.kind} before its input {missing[0]!r}")
        try:
            result = run(*[values[name] for name in _tensors(node)])
        except torch.OutOfMemoryError:
            raise
        except (Unsupported, RuntimeError, TypeError, ValueError, IndexError) as error:
            if (lacking := shortage(error)) is not None:
                raise lacking from error
            self._refuse(f"{node.kind} at {node.outputs[0]!r} ({_first_line(error)})")
        return [result] if len(node.outputs) == 1 else result

    def _bound(self, node: Node, known: _Known) -> Callable[..., Any]:
        """Return the node's function of its tensors, with its attributes and known integers in place."""
        function = partial((OPERATORS | MERGED)[node.kind], **node.attributes)
        first = KNOWN_INTEGERS.get(node.kind)
        if first is None:
            return function
        unknown = [name for name in node.inputs[first:] if name and name not in known]
        if unknown:
            self._refuse(f"{node.kind} at {node.outputs[0]!r}, by numbers that depend on the images")
        integers = [tuple(known[name].tolist()) if name else None for name in node.inputs[first:]]
        return lambda tensor: function(tensor, *integers)

    def _weight(self, tensor: onnx.TensorProto, device: str) -> Tensor:
        if tensor.data_type not in TYPES:
            self._refuse(f"{tensor.name!r} of type {onnx.TensorProto.DataType.Name(tensor.data_type)}")
        array = torch.tensor(numpy_helper.to_array(tensor))
        # Shapes are worked out on the CPU.
        return array if array.dtype == torch.int64 else array.to(device)

    def _node(self, node: onnx.NodeProto) -> Node:
        if node.domain or node.op_type not in OPERATORS:
            self._refuse(f"the operator {node.domain}{'.' if node.domain else ''}{node.op_type}")
        attributes = {one.name: _plain(onnx.helper.get_attribute_value(one)) for one in node.attribute}
        parameters = inspect.signature(OPERATORS[node.op_type]).parameters.values()
        known = {one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
        if unknown := sorted(attributes.keys() - known):
            self._refuse(f"{node.op_type}'s attribute {unknown[0]!r}")
        made = Node(node.op_type, tuple(node.input), tuple(node.output), attributes)
        if "" in (*_tensors(made), *made.outputs):
            self._refuse(f"{node.op_type} without one of its inputs or outputs")
        if made.kind in SYMMETRIC and len(made.inputs) > 2:
            zero_point = self._known.get(made.inputs[2])
            if zero_point is None or bool(zero_point.any()):
                self._refuse(f"{made.kind} at {made.outputs[0]!r}, of a zero point other than 0")
        return made

    def _refuse(self, what: str) -> NoReturn:
        raise BundleError(
            f"{self._path}: the PyTorch runtimes do not run {what}; use another runtime, or export the bundle again"
        )


def _tensors(node: Node) -> tuple[str, ...]:
    """Return the inputs that are tensors to the node's function."""
    return node.inputs[: KNOWN_INTEGERS.get(node.kind)]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, int | float) else tuple(value)

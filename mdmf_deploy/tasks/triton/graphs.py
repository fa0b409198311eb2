"""Preprocessing and reduction as ONNX graphs, so that any ONNX Runtime can score.

    contributions[n] = 1/N sum_n' k(x[n], x[n']) - 2 sum_m w[m] k(x[n], r[m]) + C
    score = mean of the contributions over n
    k(a, b) = exp(-|a - b|^2 / (2 sigma^2))

The bank is inside the reduction's graph, and a Scan takes it one tile at a time. Kernel values of 32 images of 49
patches against 65,536 points take 1.2 GB in one product, and 20 MB in tiles. One GEMM per tile gives the exponents, in
float32 or float64 as mdmf_deploy.mmd.operands chooses for the bank. All sums are float64.
Reference: mdmf_deploy.mmd.reference.ReferenceReduction (float64).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.errors import BankError, GateFailed
from mdmf_deploy.images.crops import normalise
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.operands import BankOperands

CROPS, IMAGES, SIGNATURES = "crops", "images", "signatures"
SCORE, CONTRIBUTIONS = "score", "contributions"

# No newer than the graphs of the bundles themselves, and old enough for the servers in use.
OPSET, IR_VERSION = 17, 8
# Most points in a tile.
TILE = 1024
# protobuf stops at 2 GiB.
LARGEST_GRAPH = 2_000_000_000
# exp(-110) is smaller than every positive float32 number.
_NEGLIGIBLE = 110.0
# Largest change of a patch's share that still counts as rounding, relative to the sum of all weights' sizes. No share
# exceeds that sum, and float32 has a precision of 6e-8.
_ROUNDING = 1e-6
_CHECKED_IMAGES = 4


def preprocessing_graph(preprocessing: Preprocessing, metadata: dict[str, str]) -> ModelProto:
    """Return a graph that turns crops (B, S, S, 3) uint8 into images (B, 3, S, S) float32.

    Its output has exactly the bits of images/crops.py. A client sends the pixels of its decoder, a quarter of the bytes
    of normalised planes, and cannot get mean and deviation wrong. The graph looks every value up in a table of 3 x 256,
    because arithmetic would round differently on other processors.
    """
    size = preprocessing.crop
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 16, 16, 3)
    graph = GraphBuilder()
    table = graph.constant(normalise(levels, preprocessing).ravel(), "levels")
    first = graph.constant(256 * np.arange(3, dtype=np.int32), "first_of_channel")
    place = graph.op("Add", graph.cast(CROPS, TensorProto.INT32), first)
    graph.op("Transpose", graph.op("Gather", table, place), perm=[0, 3, 1, 2], to=IMAGES)
    return graph.model(
        "preprocessing",
        [Value(CROPS, TensorProto.UINT8, ("batch", size, size, 3))],
        [Value(IMAGES, TensorProto.FLOAT, ("batch", 3, size, size))],
        metadata,
    )


def reduction_graph(bank: Bank, patches: int, metadata: dict[str, str]) -> ModelProto:
    """Return a graph that turns signatures (B, patches, d) float32 into scores.

    Its outputs are score (B, 1) float64 and contributions (B, patches) float32.

    Raises BankError for a bank that does not fit into one file.
    """
    points = BankOperands(bank)
    d = bank.signatures.shape[1]
    size = points.rows * (d + 2) * np.dtype(points.exponent).itemsize
    if size > LARGEST_GRAPH:
        raise BankError(
            f"bank: its {len(bank.signatures)} signatures take {size / 1e9:.1f} GB in an ONNX graph, which holds 2; "
            "run `mdmf bank compress` first"
        )
    graph = GraphBuilder()
    x = graph.cast(SIGNATURES, TensorProto.DOUBLE)
    # The Scan adds one column per tile, so (B, N) becomes (B, N, 1) and back.
    column = graph.constant(np.array([2]))
    start = graph.op("Add", _within(graph, x, points.gamma), graph.constant(np.float64(bank.self_term), "self_term"))
    rows = _rows(graph, x, points)
    tiles, weights = _tiles(points)
    added = graph.op(
        "Scan",
        graph.op("Unsqueeze", start, column),
        graph.constant(tiles, "bank"),
        graph.constant(weights, "weights"),
        num_scan_inputs=2,
        body=_tile(rows, tiles.shape[1], tiles.shape[2], points.exponent),
    )
    shares = graph.op("Squeeze", added, column)
    graph.cast(shares, TensorProto.FLOAT, to=CONTRIBUTIONS)
    graph.op("ReduceMean", shares, axes=[1], keepdims=1, to=SCORE)
    outputs = [
        Value(SCORE, TensorProto.DOUBLE, ("batch", 1)),
        Value(CONTRIBUTIONS, TensorProto.FLOAT, ("batch", patches)),
    ]
    return graph.model("mmd", [Value(SIGNATURES, TensorProto.FLOAT, ("batch", patches, d))], outputs, metadata)


def check_reduction(graph: Path, bank: Bank, patches: int) -> float:
    """Score a few images made of the bank's own signatures both ways, and return the largest change of a patch's share.

    Raises GateFailed if the change is more than rounding.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # as in runtime/ort.py
    signatures = np.resize(bank.signatures, (_CHECKED_IMAGES * patches, bank.signatures.shape[1]))
    # Move half of them between two points, where kernel values are neither 0 nor 1.
    signatures[::2] = (signatures[::2] + np.roll(signatures, 1, axis=0)[::2]) / 2
    images = signatures.reshape(_CHECKED_IMAGES, patches, -1)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (shares,) = session.run([CONTRIBUTIONS], {SIGNATURES: images})
    change = float(np.abs(shares - CpuReduction()(images, bank).contributions).max())
    allowed = _ROUNDING * (1.0 + 2.0 * float(np.abs(bank.weights).sum()) + abs(bank.self_term))
    # In this form, NaN fails the check.
    if not change <= allowed:
        raise GateFailed(
            f"Triton repository: not written, its reduction gives scores that differ by {change:.3g} from ours in "
            f"onnxruntime {onnxruntime.__version__} (at most {allowed:.1g} is rounding); try another version"
        )
    return change


class Value(NamedTuple):
    """An input or output. shape: None for any. A name in it stands for a free dimension."""

    name: str
    type: int
    shape: tuple[int | str, ...] | None


class GraphBuilder:
    """Collects nodes and constants in the order they are written. A value is known by its name."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def constant(self, value: NDArray[Any] | np.generic, name: str | None = None) -> str:
        """Add an initializer and return its name, which is made up if none is given."""
        name = name or f"{self._prefix}constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its one output: `to`, or a made-up one."""
        output = to or f"{self._prefix}{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def cast(self, value: str, type: int, to: str | None = None) -> str:
        # Not by op(): the attribute of Cast is called "to", like op()'s parameter.
        output = to or f"{self._prefix}cast_{len(self._nodes)}"
        self._nodes.append(helper.make_node("Cast", [value], [output], name=output, to=type))
        return output

    def body(self, name: str, inputs: list[Value], outputs: list[Value]) -> GraphProto:
        """Return the graph of a model, or of an operator that contains one."""
        return helper.make_graph(self._nodes, name, _described(inputs), _described(outputs), self._constants)

    def model(self, name: str, inputs: list[Value], outputs: list[Value], metadata: dict[str, str]) -> ModelProto:
        """Return the complete model with its metadata. ONNX's checker has passed it."""
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(self.body(name, inputs, outputs), opset_imports=opsets, ir_version=IR_VERSION)
        helper.set_model_props(model, metadata)
        checker.check_model(model, full_check=True)
        return model


def _described(values: list[Value]) -> list[ValueInfoProto]:
    return [helper.make_tensor_value_info(*value) for value in values]


def _within(graph: GraphBuilder, x: str, gamma: float) -> str:
    """Add nodes for 1/N sum_n' k(x[n], x[n']), (B, N), in float64 and centred on the image's own mean."""
    own = graph.op("Sub", x, graph.op("ReduceMean", x, axes=[1], keepdims=1))
    # Einsum, because ONNX Runtime 1.18 fuses Transpose and MatMul to an operator that it has for float32 only.
    products = graph.op("Einsum", own, own, equation="bnd,bmd->bnm")
    norms = graph.op("ReduceSum", graph.op("Mul", own, own), graph.constant(np.array([2])), keepdims=1)
    squared = graph.op("Sub", norms, graph.op("Mul", products, graph.constant(np.float64(2.0))))
    squared = graph.op("Add", squared, graph.op("Transpose", norms, perm=[0, 2, 1]))
    exponent = graph.op("Mul", squared, graph.constant(np.float64(-gamma)))
    kernel = graph.op("Exp", graph.op("Min", exponent, graph.constant(np.float64(0.0))))
    return graph.op("ReduceMean", kernel, axes=[2], keepdims=0)


def _rows(graph: GraphBuilder, x: str, points: BankOperands) -> str:
    """Add nodes for the rows (2g x, -g |x|^2, -g), (B, N, d + 2), in the exponents' type.

    x is centred on the bank's mean.
    """
    gamma = points.gamma
    centred = graph.op("Sub", x, graph.constant(points.centre, "centre"))
    if points.exponent is np.float32:
        # Beyond this edge in any coordinate k is 0 in float32, like at the edge. Far beyond, |x|^2 would overflow.
        edge = points.radius + math.sqrt(_NEGLIGIBLE / gamma)
        bounds = graph.constant(np.float64(-edge)), graph.constant(np.float64(edge))
        centred = graph.op("Clip", centred, *bounds)
    norms = graph.op("ReduceSum", graph.op("Mul", centred, centred), graph.constant(np.array([2])), keepdims=1)
    scaled = graph.op("Mul", centred, graph.constant(np.float64(2.0 * gamma)))
    factor = graph.constant(np.float64(-gamma))
    both = graph.op("Concat", scaled, graph.op("Mul", norms, factor), axis=2)
    rows = graph.op("Pad", both, graph.constant(np.array([0, 0, 0, 0, 0, 1])), factor)
    return graph.cast(rows, _type(points.exponent))


def _tiles(points: BankOperands) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """Return the bank as tiles (K, d + 2, T) of columns (r, 1, |r|^2), and -2 w as (K, T, 1).

    The last tile is filled up with points of weight 0.
    """
    bank = points.tile(0, points.rows)
    count = -(-len(bank) // TILE)
    length = -(-len(bank) // count)
    filled = np.zeros((count * length, bank.shape[1]), points.exponent)
    filled[: len(bank)] = bank
    weights = np.zeros((count, length, 1))
    weights.reshape(-1)[: len(points.bank.weights)] = -2.0 * points.bank.weights
    return np.ascontiguousarray(filled.reshape(count, length, -1).transpose(0, 2, 1)), weights


def _tile(rows: str, width: int, length: int, exponent: type[np.floating]) -> GraphProto:
    """Return the body of the Scan, which adds k(x, r) (-2 w) of one tile."""
    graph = GraphBuilder("tile_")
    kernel = graph.op("MatMul", rows, "tile")
    if exponent is np.float64:
        kernel = graph.op("Min", kernel, graph.constant(np.float64(0.0)))
    kernel = graph.cast(graph.op("Exp", kernel), TensorProto.DOUBLE)
    graph.op("Add", "added", graph.op("MatMul", kernel, "tile_weights"), to="added_to")
    return graph.body(
        "tile",
        [
            Value("added", TensorProto.DOUBLE, None),
            Value("tile", _type(exponent), (width, length)),
            Value("tile_weights", TensorProto.DOUBLE, (length, 1)),
        ],
        [Value("added_to", TensorProto.DOUBLE, None)],
    )


def _type(dtype: type[np.floating]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

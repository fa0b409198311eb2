"""ONNX operators as PyTorch functions: those that `mdmf export` writes (mdmf_deploy/tasks/export), and no others.

A function takes an operator's inputs as positional arguments and its attributes as keywords, with ONNX's defaults
(onnx.ai/onnx/operators). Inputs named in KNOWN_INTEGERS come as tuples of ints. A function raises Unsupported for a
value that it does not implement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Ints = tuple[int, ...]
# TensorProto.DataType -> PyTorch's type.
TYPES = {1: torch.float32, 3: torch.int8, 7: torch.int64, 10: torch.float16}
# Operators whose inputs from this position on give shapes, axes and places, and must be known without an image.
KNOWN_INTEGERS = {"Expand": 1, "ReduceL2": 1, "Reshape": 1, "Slice": 1, "Squeeze": 1}
# Operators whose third input must be a constant 0. Exported graphs are symmetric (mdmf_deploy.tasks.export.int8).
SYMMETRIC = ("DequantizeLinear", "QuantizeLinear")


class Unsupported(Exception):
    """A value or a type that an operator's function does not implement."""


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Unsupported(what)


def _elementwise(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(a: Tensor, *rest: Tensor) -> Tensor:
        # ONNX's types never mix. Integers would follow other rules, and exported graphs compute none in this way.
        types = {tensor.dtype for tensor in (a, *rest)}
        _require(len(types) == 1 and a.dtype.is_floating_point, f"types {sorted(map(str, types))}")
        return function(a, *rest)

    return apply


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    is_causal: int = 0,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Tensor:
    _require(q.dim() == 4, f"{q.dim()}-dimensional queries")
    _require(not is_causal and not qk_matmul_output_mode and not softcap, "a mask, a cap or scores as an output")
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def cast(x: Tensor, *, to: int) -> Tensor:
    _require(to in TYPES, f"to={to}")
    return x.to(TYPES[to])


def concat(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, axis)


def clip(x: Tensor, least: Tensor | None = None, most: Tensor | None = None) -> Tensor:
    return torch.clamp(x, least, most)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = (1, 1),
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints = (0, 0, 0, 0),
    strides: Ints = (1, 1),
) -> Tensor:
    _require(auto_pad == "NOTSET" and not any(pads), f"auto_pad={auto_pad}, pads={pads}")
    _require(kernel_shape in (None, tuple(weight.shape[2:])), f"kernel_shape={kernel_shape}")
    return F.conv2d(x, weight, bias, strides, 0, dilations, group)


def dequantize_linear(x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1) -> Tensor:
    _require(x.dtype == torch.int8, f"type {x.dtype}")
    if scale.dim():
        _require(scale.dim() == 1 and len(scale) == x.shape[axis], f"scales of shape {tuple(scale.shape)}")
        scale = scale.reshape([-1 if n == axis % x.dim() else 1 for n in range(x.dim())])
    return x.to(scale.dtype) * scale


def quantize_linear(x: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int = 1) -> Tensor:
    _require(zero_point.dtype == torch.int8, f"type {zero_point.dtype}")
    _require(scale.dim() == 0, f"scales of shape {tuple(scale.shape)}")
    # torch.round rounds half to even, as ONNX does.
    return (x / scale).round_().clamp_(-128, 127).to(torch.int8)


def expand(x: Tensor, shape: Ints) -> Tensor:
    # Unlike PyTorch's, ONNX's shape may be the shorter one, or hold 1 where x is longer.
    return x.expand(np.broadcast_shapes(x.shape, shape))


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    _require(stash_type == 1, f"stash_type={stash_type}")
    start = axis % x.dim()
    return F.layer_norm(x, x.shape[start:], scale, bias, epsilon)


def reduce_l2(x: Tensor, axes: Ints, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    _require(len(axes) > 0, "no axes")
    lengths: Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=bool(keepdims))
    return lengths


def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    if not allowzero:
        shape = tuple(x.shape[n] if length == 0 else length for n, length in enumerate(shape))
    return x.reshape(shape)


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def slice_(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    _require(steps is None or set(steps) == {1}, f"steps {steps}")
    places = [slice(None)] * x.dim()
    for axis, start, end in zip(range(len(starts)) if axes is None else axes, starts, ends, strict=True):
        first, stop, _ = slice(start, end).indices(x.shape[axis])
        places[axis] = slice(first, stop)
    return x[tuple(places)]


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return F.softmax(x, axis)


def split(x: Tensor, *, num_outputs: int, axis: int = 0) -> tuple[Tensor, ...]:
    _require(x.shape[axis] % num_outputs == 0, f"{num_outputs} parts of {x.shape[axis]}")
    return torch.chunk(x, num_outputs, axis)


def squeeze(x: Tensor, axes: Ints) -> Tensor:
    return x.squeeze(axes)


def transpose(x: Tensor, *, perm: Ints) -> Tensor:
    return x.permute(perm)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": _elementwise(torch.abs),
    "Add": _elementwise(torch.add),
    "Attention": attention,
    "Cast": cast,
    "Clip": _elementwise(clip),
    "Concat": concat,
    "Conv": conv,
    "DequantizeLinear": dequantize_linear,
    "Div": _elementwise(torch.div),
    "Erf": _elementwise(torch.erf),
    "Exp": _elementwise(torch.exp),
    "Expand": expand,
    "Gelu": gelu,
    "LayerNormalization": layer_normalization,
    "Log": _elementwise(torch.log),
    "MatMul": _elementwise(torch.matmul),
    "Mul": _elementwise(torch.mul),
    "Neg": _elementwise(torch.neg),
    "QuantizeLinear": quantize_linear,
    "ReduceL2": reduce_l2,
    "Relu": _elementwise(torch.relu),
    "Reshape": reshape,
    "Shape": shape,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Slice": slice_,
    "Softmax": softmax,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
}


def fake_quantize(x: Tensor, scale: Tensor) -> Tensor:
    """QuantizeLinear and DequantizeLinear."""
    return (x / scale).round_().clamp_(-128, 127).mul_(scale)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight.t(), bias)


def scaled_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k) v, with the scale in q and k, and k transposed: (B, heads, width, tokens)."""
    return F.scaled_dot_product_attention(q, k.transpose(-1, -2), v, scale=1.0)


def conv_apart(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Ints = (1, 1), **rest: Any) -> Tensor:
    """Conv. One of patches side by side is a product of each image's patches."""
    high, wide = weight.shape[2:]
    if tuple(strides) != (high, wide) or weight.shape[1] != x.shape[1] or rest.get("dilations", (1, 1)) != (1, 1):
        return conv(x, weight, bias, strides=strides, **rest)
    down, across = x.shape[2] // high, x.shape[3] // wide
    patches = x[:, :, : down * high, : across * wide].reshape(*x.shape[:2], down, high, across, wide)
    rows = patches.permute(0, 2, 4, 1, 3, 5).reshape(len(x), down * across, -1)
    columns = weight.flatten(1).t()
    made = matmul_apart(rows, columns) if bias is None else linear_apart(rows, columns, bias)
    return made.transpose(1, 2).reshape(len(x), -1, down, across)


def linear_apart(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    made = torch.baddbmm(bias, _rows(x), weight.expand(len(x), *weight.shape))
    return made.reshape(*x.shape[:-1], -1)


@_elementwise
def matmul_apart(a: Tensor, b: Tensor) -> Tensor:
    """MatMul. A matrix next to a stack of them is repeated, without a copy."""
    if b.dim() == 2:
        return torch.bmm(_rows(a), b.expand(len(a), *b.shape)).reshape(*a.shape[:-1], -1)
    return torch.matmul(a.expand(*b.shape[:-2], *a.shape) if a.dim() == 2 else a, b)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1, x.shape[-1])


# Operators whose kernels may treat one place of a batch unlike another, as functions that multiply image by image.
APART = {"Conv": "ConvApart", "Linear": "LinearApart", "MatMul": "MatMulApart"}
# What torch_merging.py and APART make of operators. No file may name these.
MERGED: dict[str, Callable[..., Any]] = {
    "ConvApart": conv_apart,
    "FakeQuantize": fake_quantize,
    "Linear": linear,
    "LinearApart": linear_apart,
    "MatMulApart": matmul_apart,
    "ScaledAttention": scaled_attention,
}

"""A small ONNX graph, written byte by byte, so that handmade bundles need no package onnx."""

from __future__ import annotations

import numpy as np

_FLOAT, _INT64 = 1, 7
_INTS = 7


def varint(value: int) -> bytes:
    """Return an unsigned number as protobuf writes it."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def field(number: int, value: int | bytes | str) -> bytes:
    """Return one field of a message: a number, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def graph_of(crop: int = 56, pool: int = 2, width: int = 4) -> bytes:
    """Return a model that runs: images (batch, 3, crop, crop) -> signatures (batch, pool * pool, width)."""
    side = crop // pool
    kernel = np.random.default_rng(0).integers(-8, 9, (width, 3, side, side)).astype(np.float32) / 256
    nodes = [
        _node("Conv", ["images", "kernel"], "cells", field(5, _ints("strides", [side, side]))),
        _node("Reshape", ["cells", "shape"], "rows"),
        _node("Transpose", ["rows"], "signatures", field(5, _ints("perm", [0, 2, 1]))),
    ]
    graph = b"".join(field(1, node) for node in nodes) + field(2, "small")
    graph += field(5, _tensor("kernel", kernel)) + field(5, _tensor("shape", np.array([0, width, pool * pool])))
    graph += field(11, _value("images", 3, crop, crop)) + field(12, _value("signatures", pool * pool, width))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 18))


def with_note(graph: bytes) -> bytes:
    """Return the same graph with another entry of metadata, and so with another hash."""
    return graph + field(14, field(1, "note") + field(2, "another model"))


def _node(operator: str, inputs: list[str], output: str, attributes: bytes = b"") -> bytes:
    return b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, operator) + attributes


def _ints(name: str, values: list[int]) -> bytes:
    return field(1, name) + field(8, b"".join(map(varint, values))) + field(20, _INTS)


def _tensor(name: str, values: np.ndarray) -> bytes:
    kind = _FLOAT if values.dtype == np.float32 else _INT64
    dims = b"".join(field(1, length) for length in values.shape)
    return dims + field(2, kind) + field(8, name) + field(9, values.tobytes())


def _value(name: str, *lengths: int) -> bytes:
    dimensions = field(1, field(2, "batch")) + b"".join(field(1, field(1, length)) for length in lengths)
    return field(1, name) + field(2, field(1, field(1, _FLOAT) + field(2, dimensions)))

"""The header of a safetensors file that anyone may have written, checked before a tensor is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mdmf_deploy.bundle.documents import MOST_JSON, Bytes, converted, decoded

_ITEM: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I32": np.dtype("<i4")}


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor in the header of a safetensors file."""

    dtype: Annotated[str, Meta(max_length=20)]
    shape: Annotated[tuple[Bytes, ...], Meta(max_length=8)]
    data_offsets: tuple[Bytes, Bytes]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's place in its file.  start: the offset of its first byte."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    def of(self, data: bytes) -> NDArray[Any]:
        """Copy the tensor out of the bytes of its file."""
        count = int(np.prod(self.shape, dtype=np.int64))
        values: NDArray[Any] = np.frombuffer(data, self.dtype, count, self.start).reshape(self.shape)
        return values.astype(self.dtype.newbyteorder("="), copy=True)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """The header of a safetensors file.  metadata: its texts by name."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @classmethod
    def read(cls, head: bytes, size: int, expected: Mapping[str, tuple[str, int]]) -> TensorHeader:
        """Read the header of a file that has exactly the tensors expected.

        head: the file's first bytes, up to the header's end or beyond (see header_bytes).
        size: of the file in bytes.  expected: name -> type in safetensors' spelling, and number of dimensions.
        Raises ValueError if a name, type, shape or place is another, or as read_json does.
        """
        length = int.from_bytes(head[:8], "little")
        if len(head) < 8 or length > size - 8 or length > MOST_JSON:
            raise ValueError(f"its header of {length} bytes does not fit into a file of {size}")
        tree = decoded(head[8 : 8 + length])
        if not isinstance(tree, dict):
            raise ValueError("its header is no JSON object")
        metadata = converted(tree.pop("__metadata__", {}), dict[str, str])
        entries = converted(tree, dict[str, _Entry])
        if entries.keys() != expected.keys():
            raise ValueError(f"expected the tensors {', '.join(expected)}")
        places = {name: _place(name, entries[name], 8 + length, *expected[name]) for name in expected}
        # Each tensor begins where another one ends, and the last one ends with the file.
        ends = sorted(entry.data_offsets for entry in entries.values())
        if [start for start, _ in ends] + [size - 8 - length] != [0, *(stop for _, stop in ends)]:
            raise ValueError("its tensors do not fill the file")
        return cls(places, metadata)


def header_bytes(head: bytes) -> int:
    """Return how many bytes of a safetensors file TensorHeader.read needs, given the first 8: at most MOST_JSON + 8."""
    return 8 + min(int.from_bytes(head[:8], "little"), MOST_JSON)


def _place(name: str, entry: _Entry, begin: int, dtype: str, dimensions: int) -> Tensor:
    start, stop = entry.data_offsets
    if entry.dtype != dtype or len(entry.shape) != dimensions:
        raise ValueError(f"{name}: expected {dtype} of {dimensions} dimensions")
    count = 1
    for side in entry.shape:
        count *= side
    if stop - start != count * _ITEM[dtype].itemsize:
        raise ValueError(f"{name}: {stop - start} bytes are not a tensor of shape {entry.shape}")
    return Tensor(_ITEM[dtype], entry.shape, begin + start)

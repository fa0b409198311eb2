"""Read a bank block by block, from memory or from a bank.safetensors that never has to fit into memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import BankSource
from mdmf_deploy.errors import BankError

BLOCK = 8192


class BankRows(Protocol):
    """M weighted signatures, read a slice at a time."""

    @property
    def rows(self) -> int:
        """The number of signatures, M."""
        ...

    @property
    def width(self) -> int:
        """The width of a signature, d."""
        ...

    def signatures(self, start: int, stop: int) -> NDArray[np.float32]:
        """Read signatures, (stop - start, d)."""
        ...

    def weights(self, start: int, stop: int) -> NDArray[np.float64]:
        """Read weights, (stop - start,)."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryRows:
    """A bank that is already in memory. points: (M, d). mass: (M,), their weights."""

    points: NDArray[np.float32]
    mass: NDArray[np.float64]

    @property
    def rows(self) -> int:
        return len(self.points)

    @property
    def width(self) -> int:
        return int(self.points.shape[1])

    def signatures(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.points[start:stop]

    def weights(self, start: int, stop: int) -> NDArray[np.float64]:
        return self.mass[start:stop]


class BankFile:
    """A bank.safetensors on disk, of which only the header is held in memory.

    Raises BankError, naming the file, if it is not a bank.
    """

    _TYPES: Mapping[str, tuple[str, type[np.generic]]] = {
        "signatures": ("F32", np.float32),
        "weights": ("F64", np.float64),
        "self_term": ("F64", np.float64),
        "source": ("I32", np.int32),
    }

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, path.stat().st_size)))
            metadata = json.loads(header["__metadata__"]["mdmf"])
            self._starts = {name: 8 + length + header[name]["data_offsets"][0] for name in self._TYPES}
            self._stops = {name: 8 + length + header[name]["data_offsets"][1] for name in self._TYPES}
            if any(header[name]["dtype"] != kind for name, (kind, _) in self._TYPES.items()):
                raise ValueError("a tensor has another type")
            self.rows, self.width = map(int, header["signatures"]["shape"])
            self.sigma = float(metadata["sigma"])
            self.model_sha256 = str(metadata["model_sha256"])
            self.compression: dict[str, Any] = dict(metadata["compression"])
            self.sources = tuple(BankSource(uri, sha256) for uri, sha256 in metadata["sources"])
            self.self_term = float(self._read("self_term", 0, 1)[0])
        except (OSError, struct.error, KeyError, ValueError, TypeError) as error:
            raise BankError(f"{path} is not a reference bank ({error}); build one with `mdmf bank build`") from error

    def signatures(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._read("signatures", start, stop, self.width).reshape(-1, self.width)

    def weights(self, start: int, stop: int) -> NDArray[np.float64]:
        return self._read("weights", start, stop)

    def source(self, start: int, stop: int) -> NDArray[np.int32]:
        """Read each signature's index into sources, (stop - start,)."""
        return self._read("source", start, stop)

    def _read(self, name: str, start: int, stop: int, width: int = 1) -> NDArray[Any]:
        # Read instead of mapped, because mapped pages would count as this process's memory, in the end for all M rows.
        kind = np.dtype(self._TYPES[name][1]).newbyteorder("<")
        at, count = self._starts[name] + start * width * kind.itemsize, (stop - start) * width
        if at + count * kind.itemsize > self._stops[name]:
            raise BankError(f"{self.path}: {name} ends before row {stop}; build the bank again with `mdmf bank build`")
        with self.path.open("rb") as file:
            values: NDArray[Any] = np.fromfile(file, kind, count, offset=at)
        return values


def blocks(rows: BankRows) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64]]]:
    """Yield (signatures, weights) of all rows, block by block. Raises BankError at a value that is not finite."""
    for start in range(0, rows.rows, BLOCK):
        yield _block(rows, start)


def take(rows: BankRows, places: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return (signatures, weights) at ascending places, in one pass over the blocks they are in. Raises as `blocks`."""
    parts = []
    for start in range(0, rows.rows, BLOCK):
        own = places[np.searchsorted(places, start) : np.searchsorted(places, start + BLOCK)] - start
        if len(own):
            signatures, weights = _block(rows, start)
            parts.append((signatures[own], weights[own]))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _block(rows: BankRows, start: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    stop = min(start + BLOCK, rows.rows)
    signatures, weights = rows.signatures(start, stop), rows.weights(start, stop)
    if not (np.isfinite(weights).all() and np.isfinite(signatures).all()):
        raise BankError(
            f"bank: signatures or weights of rows {start} to {stop - 1} are not finite; "
            "build it again with `mdmf bank build`"
        )
    return signatures, weights

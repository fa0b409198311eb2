"""Read a bank block by block, from memory or from a bank.safetensors that never has to fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import BankHeader
from mdmf_deploy.bundle.tensors import header_bytes
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
    """A bank.safetensors on disk, of which only the header and the weights are read at first.

    Raises BankError, naming the file, if it is not a bank, or one that cannot be. Each signature is checked when it is
    read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                head = file.read(8)
                head += file.read(header_bytes(head) - len(head))
            self._header = header = BankHeader.read(head, path.stat().st_size)
            self.rows, self.width, self.sigma = header.rows, header.width, header.sigma
            self.model_sha256, self.compression, self.sources = header.model_sha256, header.compression, header.sources
            self.self_term = float(self._read("self_term", 0, 1)[0])
            header.check_weights(self.weights(0, self.rows), self.self_term, self._at)
        except (OSError, ValueError) as error:
            raise BankError(f"{path} is not a reference bank ({error}); build one with `mdmf bank build`") from error

    def signatures(self, start: int, stop: int) -> NDArray[np.float32]:
        rows = self._read("signatures", start, stop, self.width).reshape(-1, self.width)
        try:
            self._header.check_signatures(rows)
        except ValueError as error:
            raise BankError(f"{self.path}: {error}; build the bank again with `mdmf bank build`") from error
        return rows

    def weights(self, start: int, stop: int) -> NDArray[np.float64]:
        return self._read("weights", start, stop)

    def source(self, start: int, stop: int) -> NDArray[np.int32]:
        """Read each signature's index into sources, (stop - start,)."""
        places = self._read("source", start, stop)
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(self.sources):
            raise BankError(
                f"{self.path}: source indices point outside the list of source images; "
                "build the bank again with `mdmf bank build`"
            )
        return places

    def _at(self, places: NDArray[np.intp]) -> NDArray[np.float32]:
        """Read the signatures at these places, (n, d), one by one."""
        tensor = self._header.tensors["signatures"]
        size = self.width * tensor.dtype.itemsize
        with self.path.open("rb", buffering=0) as file:

            def row(place: int) -> bytes:
                file.seek(tensor.start + place * size)
                return file.read(size)

            data = b"".join(map(row, places.tolist()))
        rows = np.frombuffer(data, tensor.dtype).reshape(-1, self.width)
        self._header.check_signatures(rows)
        return rows

    def _read(self, name: str, start: int, stop: int, width: int = 1) -> NDArray[Any]:
        # Read instead of mapped, because mapped pages would count as this process's memory, in the end for all M rows.
        tensor = self._header.tensors[name]
        at, count = tensor.start + start * width * tensor.dtype.itemsize, (stop - start) * width
        values: NDArray[Any] = np.empty(0, tensor.dtype)
        if stop <= tensor.shape[0]:
            with self.path.open("rb") as file:
                values = np.fromfile(file, tensor.dtype, count, offset=at)
        if len(values) < count:
            raise BankError(f"{self.path}: {name} ends before row {stop}; build the bank again with `mdmf bank build`")
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

"""Many paths in little memory: their bytes in one block, and where each ends. A list takes ten times as much."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload


class Paths(Sequence[Path]):
    """A sequence of paths that never changes. Each is made anew when it is asked for.

    encoded: paths as os.fsencode gives them.
    """

    __slots__ = ("_block", "_ends")

    def __init__(self, encoded: Iterable[bytes] = ()) -> None:
        self._block, self._ends = bytearray(), array("Q")
        for path in encoded:
            self._block += path
            self._ends.append(len(self._block))

    @classmethod
    def of(cls, paths: Iterable[str | Path]) -> Paths:
        """Return these paths, in their order."""
        return cls(map(encode, paths))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> Path: ...

    @overload
    def __getitem__(self, place: slice) -> Paths: ...

    def __getitem__(self, place: int | slice) -> Path | Paths:
        if isinstance(place, slice):
            return Paths(self._encoded(n) for n in range(*place.indices(len(self))))
        n = range(len(self))[place]  # so that an index may be negative, or else out of range
        return Path(os.fsdecode(self._encoded(n)))

    def __iter__(self) -> Iterator[Path]:
        for n in range(len(self)):
            yield Path(os.fsdecode(self._encoded(n)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Paths):
            return NotImplemented
        return self._ends == other._ends and self._block == other._block

    def __hash__(self) -> int:
        return hash((len(self), bytes(self._block[:64])))

    def __repr__(self) -> str:
        return f"<Paths {len(self)}>"

    def _encoded(self, n: int) -> bytes:
        return bytes(self._block[self._ends[n - 1] if n else 0 : self._ends[n]])


def encode(path: str | Path) -> bytes:
    """Return the bytes of a path as Path writes it. Paths are sorted by them."""
    return os.fsencode(Path(path))

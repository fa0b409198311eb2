"""The inputs that a resumable output holds already. Needs NumPy alone, so that .jsonl and .csv need no pyarrow."""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from struct import Struct
from typing import Literal, NamedTuple

import numpy as np

from mdmf_deploy.images.inputs import uri

State = Literal["new", "done", "changed"]

AGAIN = frozenset({"missing", "unreadable", "too_slow"})
"""Error codes of inputs that are worth another try."""

# A digest in two halves, hashes of size and time and of the content, the place, and whether to try again.
_PACKED, _HALVES = Struct("=16sQQI?"), Struct("=QQ")
_RECORD = np.dtype([("start", "u8"), ("end", "u8"), ("stamp", "u8"), ("sha256", "u8"), ("place", "u4"), ("again", "?")])


class InputKey(NamedTuple):
    """One input of a run, and the state in which its file was before it was read.

    copy: 0, or n for the n-th further time that the same input was given.
    size, mtime_ns: None if the system said nothing.
    """

    uri: str
    copy: int
    size: int | None
    mtime_ns: int | None

    @classmethod
    def of(cls, path: str | os.PathLike[str], copy: int = 0) -> InputKey:
        """Return the key of a local file as it is now."""
        try:
            status = os.stat(path)  # noqa: PTH116 (takes any path)
        except (OSError, ValueError):  # ValueError for a NUL in the name
            return cls(uri(os.fspath(path)), copy, None, None)
        return cls(uri(os.fspath(path)), copy, status.st_size, status.st_mtime_ns)

    @property
    def digest(self) -> bytes:
        """16 bytes that name the input, whatever the state of its file."""
        return digest(self.uri, self.copy)


def digest(uri: str, copy: int) -> bytes:
    """Return the 16 bytes that name an input."""
    return hashlib.blake2b(f"{copy} {uri}".encode(), digest_size=16).digest()


class Held(NamedTuple):
    """One input that an output holds.

    sha256, error_code: from its rows.
    place: number of the part that holds it.
    """

    key: InputKey
    sha256: str | None = None
    error_code: str | None = None
    place: int = 0


class Done:
    """The inputs that an output holds. Takes about 40 bytes for each, because no object stands for an input.

    held: in the order in which they were written. If an input comes twice, the later one counts.
    older: place and digest of each input that a later one of `held` supersedes.
    """

    def __init__(self, held: Iterable[Held] = ()) -> None:
        records = bytearray()
        for one in held:
            again = one.error_code in AGAIN
            records += _PACKED.pack(one.key.digest, _stamp(one.key), _short(one.sha256), one.place, again)
        found = np.frombuffer(records, _RECORD)
        order = np.lexsort((found["end"], found["start"]))  # stable: of an input's records, the last comes last
        found = found[order]
        last = np.ones(len(found), bool)
        last[:-1] = (found["start"][:-1] != found["start"][1:]) | (found["end"][:-1] != found["end"][1:])
        self.older = [(int(one["place"]), one["start"].tobytes() + one["end"].tobytes()) for one in found[~last]]
        found = found[last]
        # Plain arrays, because looking up one number in NumPy's takes ten times as long.
        self._start, self._end, self._stamp, self._sha256 = (
            array("Q", found[name].tobytes()) for name in ("start", "end", "stamp", "sha256")
        )
        self._place, self._again = array("I", found["place"].tobytes()), found["again"].tobytes()

    def __len__(self) -> int:
        return len(self._start)

    def state(self, key: InputKey, sha256: str | None = None) -> State:
        """Return what the output says about this input.

        sha256: compare this with the hash in the rows, and not size and time. Rows without one are compared by those.
        Inputs whose rows say missing, unreadable or too_slow count as changed: the next try may end otherwise.
        """
        at = self._find(key.digest)
        if at is None:
            return "new"
        if self._again[at]:
            return "changed"
        if sha256 is not None and self._sha256[at]:
            return "done" if self._sha256[at] == _short(sha256) else "changed"
        return "done" if self._stamp[at] == _stamp(key) else "changed"

    def place(self, digest: bytes) -> int | None:
        """Return the number of the part that holds an input, or None if there is none."""
        at = self._find(digest)
        return None if at is None else self._place[at]

    def _find(self, digest: bytes) -> int | None:
        start, end = _HALVES.unpack(digest)
        at = bisect_left(self._start, start)
        while at < len(self) and self._start[at] == start:
            if self._end[at] == end:
                return at
            at += 1
        return None


def _stamp(key: InputKey) -> int:
    """Return 8 bytes of a hash of the file's size and time."""
    text = f"{key.size} {key.mtime_ns}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _short(sha256: str | None) -> int:
    """Return the first 8 bytes of a hash, or 0 for none."""
    return int(sha256[:16], 16) if sha256 else 0

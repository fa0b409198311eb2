"""The inputs that a resumable output holds already. Needs NumPy alone, so that .jsonl and .csv need no pyarrow."""

from __future__ import annotations

from typing import Literal, NamedTuple


class InputKey(NamedTuple):
    """One input of a run, and the state in which its file was before it was read.

    copy: 0, or n for the n-th further time that the same input was given.
    size, mtime_ns: None if the system said nothing.
    """

    uri: str
    copy: int
    size: int | None
    mtime_ns: int | None


class Done:
    """The inputs that an output holds. Takes about 40 bytes for each: NumPy arrays, no object an input."""

    def __len__(self) -> int: ...

    def state(self, key: InputKey, sha256: str | None = None) -> Literal["new", "done", "changed"]:
        """Return what the output says about this input.

        sha256: compare this with the hash in the rows, and not size and time.
        Inputs whose rows say missing, unreadable or too_slow count as changed: the next try may end otherwise.
        """

"""Rows as one JSON array, and rows with labels as lines of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import msgspec

from mdmf_deploy.detection.rows import Row, json_line


class JsonWriter:
    """One JSON array, with an object per line. A missing value is null."""

    by_row = False  # the array has no end before `close`

    def __init__(self, file: BinaryIO, labels: Sequence[str] = ()) -> None:
        self._file = file
        self._labels = labels
        self._before = b"["

    def write(self, row: Row, *values: str | None) -> None:
        self._file.write(self._before + b"\n" + labelled_line(row, self._labels, values).rstrip())
        self._before = b","

    def close(self) -> None:
        self._file.write(b"[]\n" if self._before == b"[" else b"\n]\n")


def labelled_line(row: Row, labels: Sequence[str], values: Sequence[str | None]) -> bytes:
    """Return the row as a JSON object with its newline, with the values of these labels first."""
    line = json_line(row)
    if not labels:
        return line
    # Without its last brace, the labels' object goes on with the row's, which loses its first.
    return msgspec.json.encode(dict(zip(labels, values, strict=True)))[:-1] + b"," + line[1:]

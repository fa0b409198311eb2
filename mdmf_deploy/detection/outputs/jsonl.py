"""One JSON object a line; a value that is not there is null."""

from __future__ import annotations

from typing import BinaryIO

import msgspec

from mdmf_deploy.detection.rows import COLUMNS, Row


def line(row: Row) -> bytes:
    """The row as JSON, with its newline; every number reads back as it was."""
    return msgspec.json.encode({name: getattr(row, name) for name in COLUMNS}) + b"\n"


class JsonlWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, row: Row) -> None:
        self._file.write(line(row))

    def close(self) -> None:
        pass

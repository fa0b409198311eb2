"""CSV (RFC 4180, but lines end in a newline alone), UTF-8, with a header; a value that is not there is empty."""

from __future__ import annotations

import csv
import io
from typing import BinaryIO

from mdmf_deploy.detection.rows import COLUMNS, Row


class CsvWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._rows = csv.writer(self._text, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def write(self, row: Row) -> None:
        self._rows.writerow(getattr(row, name) for name in COLUMNS)

    def close(self) -> None:
        self._text.detach()

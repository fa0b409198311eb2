"""Rows as text: aligned lines for a terminal, one JSON object a line, and CSV."""

from __future__ import annotations

import csv
import io
from typing import BinaryIO

import msgspec

from mdmf_deploy.bundle.calibration import Verdict
from mdmf_deploy.detection.rows import COLUMNS, Row

TABLE_HEADER = f"{'verdict':<12}  {'score':>9}  {'p':>7}  {'threshold':>9}  {'size':>11}  image"

_COLOURS: dict[Verdict, str] = {
    "real": "32",
    "generated": "1;31",
    "uncertain": "33",
    "uncalibrated": "36",
    "error": "35",
}


def table_line(row: Row, colour: bool = False) -> str:
    """Return the row as one line under TABLE_HEADER. An unreadable image's line gives the reason.

    The image comes last because its path has no known width. It is never cut.
    """
    verdict = f"{row.verdict:<12}"
    if colour:
        verdict = f"\x1b[{_COLOURS[row.verdict]}m{verdict}\x1b[0m"
    score = "-" if row.score is None else f"{row.score:.6f}"
    p_value = "-" if row.p_value is None else f"{row.p_value:.3g}"
    threshold = "-" if row.threshold is None else f"{row.threshold:.6f}"
    size = "-" if row.width is None else f"{row.width}x{row.height}"
    reason = "" if row.status == "ok" else f"  ({row.error_code}: {row.error})"
    return f"{verdict}  {score:>9}  {p_value:>7}  {threshold:>9}  {size:>11}  {row.uri}{reason}"


def json_line(row: Row) -> bytes:
    """Return the row as a JSON object with its newline. Numbers read back unchanged and a missing value is null."""
    return msgspec.json.encode({name: getattr(row, name) for name in COLUMNS}) + b"\n"


class JsonlWriter:
    """One JSON object a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, row: Row) -> None:
        self._file.write(json_line(row))

    def close(self) -> None:
        """Do nothing: every line is written at once."""


class CsvWriter:
    """CSV (RFC 4180, except that a line ends in a bare newline), UTF-8, with a header. A missing value is empty."""

    def __init__(self, file: BinaryIO) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._rows = csv.writer(self._text, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def write(self, row: Row) -> None:
        self._rows.writerow(getattr(row, name) for name in COLUMNS)

    def close(self) -> None:
        self._text.detach()

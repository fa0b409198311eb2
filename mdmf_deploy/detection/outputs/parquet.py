"""Rows as Parquet, always with the same schema (extra: scale)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import BinaryIO

import pyarrow
import pyarrow.parquet

from mdmf_deploy.detection.rows import COLUMNS, Row

ROW_GROUP = 8192  # rows
_NUMBERS = {
    "score": pyarrow.float64(),
    "evidence": pyarrow.float64(),
    "p_value": pyarrow.float64(),
    "q_value": pyarrow.float64(),
    "threshold": pyarrow.float64(),
    "width": pyarrow.int32(),
    "height": pyarrow.int32(),
    "frames": pyarrow.int32(),
    "frame_time": pyarrow.float64(),
    "lowest_score": pyarrow.float64(),
    "lowest_time": pyarrow.float64(),
    "highest_score": pyarrow.float64(),
    "highest_time": pyarrow.float64(),
    "probes": pyarrow.int32(),
    "lowest_probe": pyarrow.float64(),
    "highest_probe": pyarrow.float64(),
    "ms_decode": pyarrow.float64(),
    "ms_engine": pyarrow.float64(),
    "ms_mmd": pyarrow.float64(),
}
_REQUIRED = ("uri", "status")


def schema(labels: Sequence[str] = ()) -> pyarrow.Schema:
    """Return the schema of a file with these columns of text before those of a row."""
    return pyarrow.schema(
        [
            pyarrow.field(name, _NUMBERS.get(name, pyarrow.string()), name not in _REQUIRED)
            for name in (*labels, *COLUMNS)
        ]
    )


def table_of(rows: Iterable[Row]) -> pyarrow.Table:
    """Return the rows as a table of this schema."""
    return pyarrow.Table.from_pylist([row.to_dict() for row in rows], schema())


class ParquetWriter:
    """Keep at most ROW_GROUP rows in memory."""

    by_row = False

    def __init__(self, file: BinaryIO, labels: Sequence[str] = ()) -> None:
        self._schema, self._labels = schema(labels), labels
        self._parquet = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, object]] = []

    def write(self, row: Row, *values: str | None) -> None:
        labelled = zip(self._labels, values, strict=True)
        self._rows.append(dict(labelled) | row.to_dict())
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        try:
            if self._rows:
                self._flush()
            self._parquet.close()
        except BaseException:
            self._parquet.is_open = False  # or the library tries once more when it is collected, and complains
            raise

    def _flush(self) -> None:
        self._parquet.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
        self._rows = []

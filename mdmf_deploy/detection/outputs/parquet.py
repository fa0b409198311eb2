"""Rows as Parquet, always with the same schema (extra: scale)."""

from __future__ import annotations

from typing import BinaryIO

import pyarrow
import pyarrow.parquet

from mdmf_deploy.detection.rows import COLUMNS, Row

ROW_GROUP = 8192  # rows
_NUMBERS = {
    "score": pyarrow.float64(),
    "evidence": pyarrow.float64(),
    "p_value": pyarrow.float64(),
    "threshold": pyarrow.float64(),
    "width": pyarrow.int32(),
    "height": pyarrow.int32(),
    "ms_decode": pyarrow.float64(),
    "ms_engine": pyarrow.float64(),
    "ms_mmd": pyarrow.float64(),
}
SCHEMA = pyarrow.schema(
    [pyarrow.field(name, _NUMBERS.get(name, pyarrow.string()), name not in ("uri", "status")) for name in COLUMNS]
)


class ParquetWriter:
    """Keep at most ROW_GROUP rows in memory."""

    by_row = False

    def __init__(self, file: BinaryIO) -> None:
        self._parquet = pyarrow.parquet.ParquetWriter(file, SCHEMA)
        self._rows: list[dict[str, object]] = []

    def write(self, row: Row) -> None:
        self._rows.append({name: getattr(row, name) for name in COLUMNS})
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
        self._parquet.write_table(pyarrow.Table.from_pylist(self._rows, SCHEMA))
        self._rows = []

"""Rows in a folder of Parquet parts that later runs add to."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType

import msgspec

from mdmf_deploy.detection.outputs.done import Done, InputKey
from mdmf_deploy.detection.outputs.parquet import schema, table_of
from mdmf_deploy.detection.outputs.parts import PartFolder, key_columns, with_keys
from mdmf_deploy.detection.outputs.rows_file import JUDGED
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.settings import RunSettings
from mdmf_deploy.interrupts import held_back

PART_INPUTS, PART_SECONDS = 1000, 60.0
"""A part is written after so many inputs or seconds, whatever comes first."""


class RowParts:
    """See outputs/resumable.py. A crash costs the inputs since the last part. An interrupt costs none.

    every_row: write a part for each input.
    """

    def __init__(self, path: Path, settings: RunSettings, *, every_row: bool = False) -> None:
        self.path = path
        self._most = 1 if every_row else PART_INPUTS
        self._parts = PartFolder.open(str(path), settings, "rows", schema(), resume=True)
        self._waiting: list[tuple[InputKey, Sequence[Row]]] = []
        self._deadline = 0.0

    @property
    def done(self) -> Done:
        """The inputs in all parts."""
        return self._parts.done

    def drop(self, inputs: Iterable[tuple[str, int]]) -> int:
        """Remove the rows of these (uri, copy)."""
        return self._parts.drop(inputs)

    def write(self, key: InputKey, rows: Sequence[Row]) -> None:
        """Keep the rows for the next part, and write it if it is time."""
        if not self._waiting:
            self._deadline = time.monotonic() + PART_SECONDS
        # Contributions are not written, and take ten times as much memory as all the rest.
        self._waiting.append((key, [msgspec.structs.replace(row, contributions=None) for row in rows]))
        if len(self._waiting) >= self._most or time.monotonic() >= self._deadline:
            self._flush()

    def rows(self) -> Iterator[Row]:
        """Yield all rows, as far as exit codes depend on them."""
        for table in self._parts.tables(list(JUDGED)):
            yield from (msgspec.convert(facts, Row) for facts in table.to_pylist())

    def close(self) -> None:
        """Write the last part."""
        with held_back(), self._parts:
            self._flush()

    def __enter__(self) -> RowParts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error of the disk, another one says nothing new.
        with suppress(OSError) if isinstance(error, OSError) else nullcontext():
            self.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        each = [(key, row) for key, rows in self._waiting for row in rows]
        table = table_of(row for _, row in each)
        self._parts.write(with_keys(table, key_columns(key for key, _ in each)))
        self._waiting = []

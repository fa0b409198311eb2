"""Rows that are held back until a run's last row is there, because their verdicts depend on all of them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from mdmf_deploy.detection.discoveries import Discoveries
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.interrupts import held_back
from mdmf_deploy.scratch import named


class HeldRows:
    """Rows in a temporary file without a name, which the system removes however the run ends. Use it in a `with` block.

    After an error or an interrupt, the rows that are still held are written with the verdicts of their own p-values.

    write: takes each row, without its contributions, once it is judged.
    rate: the false discovery rate. Raises UsageError unless it is in (0, 1).
    """

    def __init__(self, write: Callable[[Row], None], rate: float) -> None:
        self.found = Discoveries(rate)
        self._write_on = write
        self._place = Path(tempfile.gettempdir())
        with named(self._place):
            # Without a buffer, so that a full disk costs only the row that does not fit.
            self._file = tempfile.TemporaryFile(buffering=0, prefix="mdmf-rows-")  # noqa: SIM115 (closed by __exit__)
        self._reader = io.BufferedReader(self._file)
        self._decode = msgspec.json.Decoder(Row).decode
        self._held, self._released, self._refused = 0, False, False

    def write(self, row: Row) -> None:
        """Hold a row back. Raises an OSError that names the folder of temporary files if its disk is full."""
        data = msgspec.json.encode(row.to_dict()) + b"\n"
        with named(self._place), held_back():
            while data:  # a system may write less than it is given
                data = data[self._file.write(data) :]
            self._held += 1
            self.found.add(row)

    def release(self) -> Iterator[Row]:
        """Judge all rows together, write them in order, and yield each one that is written. Call it once."""
        self._rewind()
        while self._held:
            with held_back():
                row = self.found.judge(self._next())
                self._pass_on(row)
            yield row

    def __enter__(self) -> HeldRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with held_back(), self._reader:
            judged = self._released
            if not judged and self._held:
                self._rewind()
            while self._held and not self._refused:
                row = self._next()
                self._pass_on(self.found.judge(row) if judged else row)

    def _rewind(self) -> None:
        with named(self._place):
            self._reader.seek(0)
        self._released = True

    def _next(self) -> Row:
        with named(self._place):
            line = self._reader.readline()
        self._held -= 1
        return self._decode(line)

    def _pass_on(self, row: Row) -> None:
        # An output that has refused a row may hold half of it, and gets no other.
        self._refused = True
        self._write_on(row)
        self._refused = False

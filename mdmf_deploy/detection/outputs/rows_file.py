"""Rows in one file that later runs add to (.jsonl, .csv). A journal lies beside it (journal.py)."""

from __future__ import annotations

import csv
import io
import logging
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from mdmf_deploy.detection.outputs import CsvWriter, JsonlWriter, Writer
from mdmf_deploy.detection.outputs.done import Done, InputKey, digest
from mdmf_deploy.detection.outputs.journal import Entry, Journal, Mark, line
from mdmf_deploy.detection.outputs.resumable import journal_of
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.settings import RunSettings
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import atomic_file, failure, only_writer
from mdmf_deploy.interrupts import held_back
from mdmf_deploy.scratch import named, remove_strays
from mdmf_deploy.text import from_cell

_LOG = logging.getLogger(__name__)

SYNC_SECONDS = 5.0
JUDGED = ("uri", "status", "verdict", "reason", "size_group", "frame_time")
"""The columns on which exit codes depend."""


class RowsFile:
    """A file that gets each input's rows at its end, as they come, so that `tail -f` shows them.

    A crash of the process, the disk or the machine costs only inputs that were not finished, or whose rows had not been
    flushed to the disk.

    every_row: flush after each input, not only every SYNC_SECONDS.
    Raises UsageError if another run is writing the file, it was begun with other settings, it was changed since, or
    there is no journal.
    """

    def __init__(self, path: Path, settings: RunSettings, *, every_row: bool = False) -> None:
        writer, self._read = _FORMATS[path.suffix.lower()]
        self.path = path.resolve()  # so that a link to a file stays a link
        self._journal = Journal(journal_of(self.path), self.path)
        self._settings, self._every_row = settings, every_row
        self._buffer = io.BytesIO()
        self._writer = writer(self._buffer)
        self._header = self._buffer.getvalue()
        self._files: tuple[io.FileIO, io.FileIO] | None = None
        self._sizes = (0, 0)  # of the journal and the rows, without what an interrupt cut short
        self._next_sync = 0.0
        self._done: Done | None = None
        self._held = ExitStack()
        with ExitStack() as opened:
            opened.callback(self._held.close)
            opened.callback(self._close_files)
            try:
                self._held.enter_context(only_writer(self.path))
                remove_strays(self.path.parent, self._journal.path.name)
                self._open()
            except OSError as error:
                raise UsageError(failure(f"-o {path}", error, "choose a place you can read and write")) from error
            opened.pop_all()

    @property
    def done(self) -> Done:
        """The inputs whose rows the file holds. It does not count what `write` adds."""
        if self._done is None:
            self._done = Done(entry.held for entry in self._journal.entries())
        return self._done

    def drop(self, inputs: Iterable[tuple[str, int]]) -> int:
        """Remove the rows of these (uri, copy) in one step. Return how many inputs were removed.

        Call it before `write`. After a crash in between, the file holds the old rows or the new.
        """
        dropped = {name for one in inputs if self.done.place(name := digest(*one)) is not None}
        if not dropped:
            return 0
        with named(self.path):
            self._replace(lambda entry: digest(entry.uri, entry.copy) not in dropped)
        self._done = None
        return len(dropped)

    def write(self, key: InputKey, rows: Sequence[Row]) -> None:
        """Append the rows of an input. Raises OSError that names the file."""
        self._buffer.seek(0)
        self._buffer.truncate()
        for row in rows:
            self._writer.write(row)
        data = self._buffer.getvalue()
        entry = Entry(*key, len(data), zlib.crc32(data), rows[0].error_code, rows[0].sha256)
        with named(self.path):
            self._append(data, line(entry))
            if self._every_row or time.monotonic() >= self._next_sync:
                self._sync(Mark("synced", self._sizes[1]))

    def rows(self) -> Iterator[Row]:
        """Yield all rows that the file holds, as far as exit codes depend on them."""
        with self.path.open("rb") as file:
            yield from self._read(file)

    def close(self) -> None:
        """Flush what is finished, cut off what an interrupt or a full disk cut short, and give the lock back."""
        with held_back(), self._held, named(self.path):
            if self._files is None:
                return
            try:
                for file, size in zip(self._files, self._sizes, strict=True):
                    _cut(file, size)
                self._sync(Mark("closed", self._sizes[1]))
                os.fsync(self._files[0].fileno())
            finally:
                self._close_files()

    def __enter__(self) -> RowsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error of the disk, another one says nothing new.
        with suppress(OSError) if isinstance(error, OSError) else nullcontext():
            self.close()

    def _open(self) -> None:
        """Begin both files, or mend what a crash left of them."""
        begun = self._journal.path.exists()
        if not begun and self.path.exists() and self.path.stat().st_size:
            raise UsageError(
                f"{self.path} has no journal ({self._journal.path.name}) to go on from; "
                "choose another -o, or leave out --resume to replace it"
            )
        if begun and not self.path.exists():
            _LOG.info("%s is gone, so this run begins anew", self.path)
            begun = False
        if not begun:
            self.path.touch()  # first, so that its name is on the disk before the journal promises anything
            self._journal.write(self._settings, (), 0)
        self._journal.settings().check_same(self._settings, str(self.path))
        self._begin(*self._journal.recover(self._header))

    def _begin(self, journal: int, rows: int) -> None:
        """Open both files to append to what is whole of them."""
        files = self._journal.path.open("r+b", buffering=0), self.path.open("r+b", buffering=0)
        self._sizes, self._files = (journal, rows), files
        for file, size in zip(files, self._sizes, strict=True):
            _cut(file, size)
        if not rows:
            self._append(self._header, b"")
        self._sync(Mark("synced", self._sizes[1]))
        # Before a row follows, it must be sure that the file is no longer closed.
        os.fsync(files[0].fileno())

    def _append(self, rows: bytes, entry: bytes) -> None:
        assert self._files is not None
        for file, data in zip(reversed(self._files), (rows, entry), strict=True):
            while data:  # a system may write less than it is given
                data = data[file.write(data) :]
        self._sizes = self._sizes[0] + len(entry), self._sizes[1] + len(rows)

    def _sync(self, mark: Mark) -> None:
        """Flush both files, and then say so in the journal."""
        assert self._files is not None
        for file in reversed(self._files):
            os.fsync(file.fileno())
        self._append(b"", line(mark))
        self._next_sync = time.monotonic() + SYNC_SECONDS

    def _replace(self, keep: Callable[[Entry], bool]) -> None:
        """Replace the rows by those of some inputs, and then the journal. In between, the last mark tells which."""
        size = len(self._header) + sum(entry.bytes for entry in self._journal.entries() if keep(entry))
        assert self._files is not None
        self._append(b"", line(Mark("replacing", size)))
        os.fsync(self._files[0].fileno())
        self._close_files()
        with atomic_file(self.path) as scratch:
            scratch.chmod(stat.S_IMODE(self.path.stat().st_mode))
            with self.path.open("rb") as before, scratch.open("wb") as after:
                after.write(before.read(len(self._header)))
                for entry in self._journal.entries():
                    data = before.read(entry.bytes)
                    if keep(entry):
                        after.write(data)
        self._journal.write(self._settings, filter(keep, self._journal.entries()), size)
        self._begin(self._journal.path.stat().st_size, size)

    def _close_files(self) -> None:
        files, self._files = self._files, None
        for file in files or ():
            file.close()


def _cut(file: io.FileIO, size: int) -> None:
    """Cut off whatever follows, and stand at the end. A file that ends there stays untouched."""
    if file.seek(0, os.SEEK_END) > size:
        file.truncate(size)
        file.seek(size)


def _read_jsonl(file: BinaryIO) -> Iterator[Row]:
    decode = msgspec.json.Decoder(Row).decode
    return map(decode, file)


def _read_csv(file: BinaryIO) -> Iterator[Row]:
    with io.TextIOWrapper(file, "utf-8", newline="") as text:
        for cells in csv.DictReader(text):
            facts = {name: from_cell(cells[name]) or None for name in JUDGED}
            yield msgspec.convert(facts, Row, strict=False)


# ending -> writer, reader
_FORMATS: dict[str, tuple[Callable[[BinaryIO], Writer], Callable[[BinaryIO], Iterator[Row]]]] = {
    ".jsonl": (JsonlWriter, _read_jsonl),
    ".csv": (CsvWriter, _read_csv),
}

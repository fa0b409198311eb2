"""Rows to files, one writer per format. A file appears under its name only when it is complete and valid."""

from __future__ import annotations

import csv
import importlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from mdmf_deploy.detection.outputs.json_rows import labelled_line
from mdmf_deploy.detection.rows import COLUMNS, Row
from mdmf_deploy.errors import RuntimeUnavailable, UsageError, install
from mdmf_deploy.files import failure, only_writer, replace_durably
from mdmf_deploy.interrupts import held_back
from mdmf_deploy.scratch import named, scratch_file
from mdmf_deploy.text import cell

if TYPE_CHECKING:
    import pyarrow


class Writer(Protocol):
    """Built as Writer(file, labels). Writes labels, and then all of mdmf_deploy.detection.rows.COLUMNS, in their order.

    labels: names of columns of text that are not in a row, such as an evaluation's condition.
    by_row: whether the file is valid after every row, not only after `close`.
    """

    by_row: bool

    def write(self, row: Row, *values: str | None) -> None:
        """Write a row, with a value for each of the labels."""
        ...

    def close(self) -> None:
        """Write what is left, so that the file is valid. The file itself stays open."""
        ...


# ending -> module, class, extra that installs the module's imports
WRITERS: dict[str, tuple[str, str, str]] = {
    ".jsonl": ("mdmf_deploy.detection.outputs", "JsonlWriter", ""),
    ".json": ("mdmf_deploy.detection.outputs.json_rows", "JsonWriter", ""),
    ".csv": ("mdmf_deploy.detection.outputs", "CsvWriter", ""),
    ".parquet": ("mdmf_deploy.detection.outputs.parquet", "ParquetWriter", "parquet"),
}


def rows_to_arrow(rows: Iterable[Row]) -> pyarrow.Table:
    """Return rows as a pyarrow Table with the columns and types of `-o rows.parquet`, also if there are none.

    Raises RuntimeUnavailable if pyarrow is not installed.
    """
    try:
        from mdmf_deploy.detection.outputs.parquet import table_of
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(f"rows_to_arrow needs {error.name}; run: {install('parquet')}") from error
    return table_of(rows)


@dataclass(slots=True)
class Scratch:
    """A temporary file on its way to its name.

    rows: how many complete rows it holds that are worth keeping.
    size: how many of its bytes hold them. None means all, once the file is closed.
    valid: whether it could be read as it is.
    """

    file: BinaryIO
    rows: int = 0
    size: int | None = None
    valid: bool = True

    def keep(self, rows: int = 1) -> None:
        """Count rows just written, and hand them to the system, so that later failures cost only later rows."""
        self.file.flush()
        self.rows, self.size = self.rows + rows, self.file.tell()


def check_ending(path: Path, endings: Iterable[str]) -> str:
    """Return the ending of a file to write, in small letters.

    Raises UsageError, listing the endings, if it is none of them or if the path is a folder, such as a bundle.
    """
    ending, known = path.suffix.lower(), ", ".join(endings)
    if path.is_dir():
        raise UsageError(f"-o {path} is a folder; give the name of a file that ends in one of {known}")
    if ending not in endings:
        raise UsageError(f"-o {path}: no format ends in {ending!r}; choose one of {known}")
    return ending


@contextmanager
def open_output(path: Path, labels: Sequence[str] = ()) -> Iterator[Writer]:
    """Open a writer for the format that the path's ending names. The file takes its name as in `replacing`.

    labels: the columns before those of a row, as in Writer.
    Raises UsageError for an unknown ending, RuntimeUnavailable if the format's library is not installed.
    """
    writer_class = _writer_class(path)
    with replacing(path) as scratch:
        scratch.valid = writer_class.by_row
        writer = _CountingWriter(writer_class(scratch.file, labels), scratch, path)
        try:
            yield writer
        finally:
            with held_back():
                writer.close()  # after a crash too, since a library's writer complains if it is collected open
                scratch.valid = True


@contextmanager
def replacing(path: Path, option: str = "-o") -> Iterator[Scratch]:
    """Open a temporary file beside the path. It takes that name when the block ends, replacing an older file.

    After an exception or an interrupt (Ctrl-C, SIGTERM), an older file stays as it is. Complete rows are then kept
    beside it as <stem>.partial<ending>, which replaces those of an earlier run. A note on the exception says what was
    kept. An interrupt after the block waits until the file has its name.
    option: names the path in errors.
    Raises UsageError, before anything is written, if the place cannot be written to, or if another process is writing
    the same file.
    """
    path = path.resolve()  # so that a link to a file stays a link
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; give the name of a file")
    with ExitStack() as stack:
        try:
            stack.enter_context(only_writer(path))
            temporary = stack.enter_context(scratch_file(path))
            file = temporary.open("wb")
        except OSError as error:
            raise UsageError(failure(f"{option} {path}", error, "choose a place you can write to")) from error
        scratch, target = Scratch(file), path
        keep = True
        try:
            yield scratch
        except BaseException as error:
            target, keep = path.with_name(f"{path.stem}.partial{path.suffix}"), bool(scratch.rows and scratch.valid)
            _explain(error, scratch, path, target if keep else None)
            raise
        finally:
            with held_back(), named(path):
                _settle(scratch, temporary, path, target if keep else None)


@contextmanager
def open_report(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that writes the whole file. It takes its name as in `replacing`, which holds the output's lock.

    Raises an OSError that names the file if the disk is full.
    """
    with replacing(path) as scratch:

        def write(data: bytes) -> None:
            with named(path):
                scratch.file.write(data)

        yield write


class JsonlWriter:
    """One JSON object per line. A missing value is null."""

    by_row = True

    def __init__(self, file: BinaryIO, labels: Sequence[str] = ()) -> None:
        self._file = file
        self._labels = labels

    def write(self, row: Row, *values: str | None) -> None:
        self._file.write(labelled_line(row, self._labels, values))

    def close(self) -> None:
        """Do nothing: every line is written at once."""


class CsvWriter:
    """CSV (RFC 4180, except that a line ends in a bare newline), UTF-8, with a header. A missing value is empty.

    Texts are written as mdmf_deploy.text.cell says, so that no spreadsheet takes one for a formula.
    """

    by_row = True

    def __init__(self, file: BinaryIO, labels: Sequence[str] = ()) -> None:
        self._file = file
        self._line = io.StringIO(newline="")
        self._csv = csv.writer(self._line, lineterminator="\n")
        self._write([*labels, *COLUMNS])

    def write(self, row: Row, *values: str | None) -> None:
        self._write([*values, *(getattr(row, name) for name in COLUMNS)])

    def close(self) -> None:
        """Do nothing: every line is written at once."""

    def _write(self, values: Iterable[object]) -> None:
        self._line.seek(0)
        self._line.truncate()
        self._csv.writerow(map(cell, values))
        self._file.write(self._line.getvalue().encode())


def _explain(error: BaseException, scratch: Scratch, path: Path, kept: Path | None) -> None:
    """Say in notes on the error where the finished rows are, and what became of an older file at the path."""
    if scratch.rows:
        error.add_note(f"the {scratch.rows} rows finished before are {'lost' if kept is None else f'in {kept}'}")
    if path.exists():
        error.add_note(f"{path} is unchanged")


def _settle(scratch: Scratch, temporary: Path, path: Path, target: Path | None) -> None:
    """Give a valid file its final name, if it has one, once it is on disk."""
    try:
        try:
            scratch.file.close()
        except OSError:
            if scratch.size is None:
                raise
        if target is not None and scratch.valid:
            if scratch.size is not None:
                os.truncate(temporary, scratch.size)  # a full disk may have taken half a row more
            replace_durably(temporary, target)
    except OSError as error:
        if temporary.exists():  # otherwise it has its name, and only the folder was not flushed
            _explain(error, scratch, path, None)
        raise


class _CountingWriter:
    """A writer that keeps account of its rows, and names the file in the errors of the system."""

    def __init__(self, writer: Writer, scratch: Scratch, path: Path) -> None:
        self._writer, self._scratch, self._path = writer, scratch, path
        self.by_row = writer.by_row
        if self.by_row:
            scratch.keep(0)

    def write(self, row: Row, *values: str | None) -> None:
        with named(self._path):
            self._writer.write(row, *values)
            if self.by_row:
                self._scratch.keep()
            else:
                self._scratch.rows += 1

    def close(self) -> None:
        with named(self._path):
            self._writer.close()


def _writer_class(path: Path) -> Any:
    ending = check_ending(path, WRITERS)
    module, name, extra = WRITERS[ending]
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(f"-o {path}: {ending} needs {error.name}; run: {install(extra)}") from error

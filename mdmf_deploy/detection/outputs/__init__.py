"""Rows to files, one writer per format. A file appears under its name only when it is complete and valid."""

from __future__ import annotations

import csv
import importlib
import io
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO, Protocol

from mdmf_deploy.detection.outputs.json_rows import labelled_line
from mdmf_deploy.detection.rows import COLUMNS, Row
from mdmf_deploy.errors import RuntimeUnavailable, UsageError, install
from mdmf_deploy.files import replace_durably

if TYPE_CHECKING:
    import pyarrow


class Writer(Protocol):
    """Built as Writer(file, labels). Writes labels, and then all of mdmf_deploy.detection.rows.COLUMNS, in their order.

    labels: names of columns of text that are not in a row, such as an evaluation's condition.
    """

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
    ".parquet": ("mdmf_deploy.detection.outputs.parquet", "ParquetWriter", "scale"),
}


def rows_to_arrow(rows: Iterable[Row]) -> pyarrow.Table:
    """Return rows as a pyarrow Table with the columns and types of `-o rows.parquet`, also if there are none.

    Raises RuntimeUnavailable if pyarrow is not installed.
    """
    try:
        from mdmf_deploy.detection.outputs.parquet import table_of
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(f"rows_to_arrow needs {error.name}; run: {install('scale')}") from error
    return table_of(rows)


@dataclass(slots=True)
class Scratch:
    """A temporary file on its way to its name.

    rows: how many complete rows it holds that are worth keeping.
    valid: whether it could be read as it is.
    """

    file: BinaryIO
    rows: int = 0
    valid: bool = True


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
        scratch.valid = False
        writer = _CountingWriter(writer_class(scratch.file, labels))
        try:
            yield writer
        finally:
            with _uninterrupted():
                writer.close()  # after a crash too, since a library's writer complains if it is collected open
                scratch.rows, scratch.valid = writer.rows, True


@contextmanager
def replacing(path: Path) -> Iterator[Scratch]:
    """Open a temporary file beside the path. It takes that name when the block ends, replacing an older file.

    An interrupt (Ctrl-C) ends the block in the same way, and a second one waits until the file has its name. After any
    other exception the older file stays. Complete rows, if there are any, are then kept as <stem>.partial<ending>, and
    a note on the exception says so.
    Raises UsageError, before anything is written, if the place cannot be written to.
    """
    path = path.resolve()  # so that a link to a file stays a link
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise UsageError(f"-o {path} is a folder; give the name of a file")
        file = temporary.open("wb")
    except OSError as error:
        raise UsageError(f"-o {path}: {error.strerror}; choose a place you can write to") from error
    target: Path | None = None
    scratch = Scratch(file)
    try:
        yield scratch
        target = path
    except KeyboardInterrupt:
        target = path
        raise
    except Exception as error:
        if scratch.rows:
            target = path.with_name(f"{path.stem}.partial{path.suffix}")
            error.add_note(f"the {scratch.rows} rows finished before are in {target}")
        raise
    finally:
        with _uninterrupted():
            _settle(scratch, temporary, target)


class JsonlWriter:
    """One JSON object per line. A missing value is null."""

    def __init__(self, file: BinaryIO, labels: Sequence[str] = ()) -> None:
        self._file = file
        self._labels = labels

    def write(self, row: Row, *values: str | None) -> None:
        self._file.write(labelled_line(row, self._labels, values))

    def close(self) -> None:
        """Do nothing: every line is written at once."""


class CsvWriter:
    """CSV (RFC 4180, except that a line ends in a bare newline), UTF-8, with a header. A missing value is empty."""

    def __init__(self, file: BinaryIO, labels: Sequence[str] = ()) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._rows = csv.writer(self._text, lineterminator="\n")
        self._rows.writerow([*labels, *COLUMNS])

    def write(self, row: Row, *values: str | None) -> None:
        self._rows.writerow([*values, *(getattr(row, name) for name in COLUMNS)])

    def close(self) -> None:
        self._text.detach()


def _settle(scratch: Scratch, temporary: Path, target: Path | None) -> None:
    """Give a valid file its final name, if it has one, once it is on disk. Always remove the temporary name."""
    try:
        scratch.file.close()
        if target is not None and scratch.valid:
            replace_durably(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C until the block has ended. Only the main thread is ever interrupted, so others just run."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *arguments: held.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(*held[0])


class _CountingWriter:
    """A writer that counts its rows."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.rows = 0

    def write(self, row: Row, *values: str | None) -> None:
        self._writer.write(row, *values)
        self.rows += 1

    def close(self) -> None:
        self._writer.close()


def _writer_class(path: Path) -> type:
    ending = check_ending(path, WRITERS)
    module, name, extra = WRITERS[ending]
    try:
        found: type = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(f"-o {path}: {ending} needs {error.name}; run: {install(extra)}") from error
    return found

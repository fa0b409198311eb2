"""Rows to files, one writer a format; a file appears under its name only once it is whole and valid."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mdmf_deploy.errors import RuntimeUnavailable, UsageError
from mdmf_deploy.rows import Row


class Writer(Protocol):
    """Built as Writer(file); writes every column of mdmf_deploy.rows.COLUMNS, in their order."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None:
        """Write what is left, so that the file is valid as it is; the file itself stays open."""
        ...


# ending -> module, class, extra that installs what it imports
WRITERS: dict[str, tuple[str, str, str]] = {
    ".jsonl": ("mdmf_deploy.outputs.jsonl", "JsonlWriter", ""),
    ".csv": ("mdmf_deploy.outputs.csv_file", "CsvWriter", ""),
    ".parquet": ("mdmf_deploy.outputs.parquet", "ParquetWriter", "scale"),
}


@contextmanager
def open_output(path: Path) -> Iterator[Writer]:
    """A writer for the format that the path's ending names.

    The rows go to a temporary file beside it, which takes its name at the end. An interrupt (Ctrl-C) is such an end,
    and what was written stays; any other exception leaves no file, and an older one of that name as it was.
    Raises UsageError, before anything is written, for an unknown ending or a place that cannot be written to,
    RuntimeUnavailable if the format's library is not installed.
    """
    writer_class = _writer_class(path)
    path = path.resolve()  # a link to a file stays one
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise UsageError(f"-o {path} is a folder; give the name of a file")
        file = scratch.open("wb")
    except OSError as error:
        raise UsageError(f"-o {path}: {error.strerror}; choose a place you can write to") from error
    finished = whole = False
    try:
        with file:
            writer = writer_class(file)
            try:
                yield writer
                finished = True
            except KeyboardInterrupt:
                finished = True
                raise
            finally:
                writer.close()  # after a crash too: a library's writer would complain once it is collected
                file.flush()
                os.fsync(file.fileno())
                whole = finished
    finally:
        if whole:
            scratch.replace(path)
        scratch.unlink(missing_ok=True)


def _writer_class(path: Path) -> type:
    ending = path.suffix.lower()
    if ending not in WRITERS:
        raise UsageError(f"-o {path}: no format ends in {ending!r}; choose one of {', '.join(WRITERS)}")
    module, name, extra = WRITERS[ending]
    try:
        found: type = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(
            f"-o {path}: {ending} needs {error.name}; run: pip install 'mdmf-deploy[{extra}]'"
        ) from error
    return found

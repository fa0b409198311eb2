"""Rows to files, one writer a format; a file appears under its name only once it is whole and valid."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Protocol

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import RuntimeUnavailable, UsageError


class Writer(Protocol):
    """Built as Writer(file); writes every column of mdmf_deploy.detection.rows.COLUMNS, in their order."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None:
        """Write what is left, so that the file is valid as it is; the file itself stays open."""
        ...


# ending -> module, class, extra that installs what it imports
WRITERS: dict[str, tuple[str, str, str]] = {
    ".jsonl": ("mdmf_deploy.detection.outputs.jsonl", "JsonlWriter", ""),
    ".csv": ("mdmf_deploy.detection.outputs.text_formats", "CsvWriter", ""),
    ".parquet": ("mdmf_deploy.detection.outputs.parquet", "ParquetWriter", "scale"),
}


@dataclass(slots=True)
class Scratch:
    """A file on its way to its name.

    rows: how many of those in it are whole and worth keeping.  valid: whether it could be read as it is.
    """

    file: BinaryIO
    rows: int = 0
    valid: bool = True


@contextmanager
def open_output(path: Path) -> Iterator[Writer]:
    """A writer for the format that the path's ending names; the file comes about as `replacing` says.

    Raises UsageError for an unknown ending, RuntimeUnavailable if the format's library is not installed.
    """
    writer_class = _writer_class(path)
    with replacing(path) as scratch:
        scratch.valid = False
        writer = _Counted(writer_class(scratch.file))
        try:
            yield writer
        finally:
            with unbroken():
                writer.close()  # after a crash too: a library's writer would complain once it is collected
                scratch.rows, scratch.valid = writer.rows, True


@contextmanager
def replacing(path: Path) -> Iterator[Scratch]:
    """A temporary file beside the path, which takes its name at the end, replacing one that is there.

    An interrupt (Ctrl-C) is such an end, and a second one waits until it is done. After any other exception an older
    file of that name stays as it was, and whole rows, if there are any, are kept as <stem>.partial<ending>, as a note
    on the exception says.
    Raises UsageError, before anything is written, for a place that cannot be written to.
    """
    path = path.resolve()  # a link to a file stays one
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise UsageError(f"-o {path} is a folder; give the name of a file")
        file = scratch.open("wb")
    except OSError as error:
        raise UsageError(f"-o {path}: {error.strerror}; choose a place you can write to") from error
    target: Path | None = None
    written = Scratch(file)
    try:
        yield written
        target = path
    except KeyboardInterrupt:
        target = path
        raise
    except Exception as error:
        if written.rows:
            target = path.with_name(f"{path.stem}.partial{path.suffix}")
            error.add_note(f"the {written.rows} rows finished before are in {target}")
        raise
    finally:
        with unbroken():
            _settle(written, scratch, target)


def _settle(written: Scratch, scratch: Path, target: Path | None) -> None:
    """Give the file its name, if there is one for it and everything is on the disk; leave none of another name."""
    try:
        with written.file as file:
            file.flush()
            os.fsync(file.fileno())
        if target is not None and written.valid:
            scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


class _Counted:
    """A writer, and how many rows it has taken."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.rows = 0

    def write(self, row: Row) -> None:
        self._writer.write(row)
        self.rows += 1

    def close(self) -> None:
        self._writer.close()


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


@contextmanager
def unbroken() -> Iterator[None]:
    """Hold back Ctrl-C until the block has ended; outside the main thread, which alone is interrupted, do nothing."""
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

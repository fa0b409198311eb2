"""Outputs that later runs add to: what they have in common, and which format has which."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mdmf_deploy.detection.outputs.done import Done, InputKey
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.settings import RunSettings
from mdmf_deploy.errors import RuntimeUnavailable, UsageError, install


class Resumable(Protocol):
    """An output that holds the rows of each input whole or not at all, however a run ends. Use it in a `with` block."""

    @property
    def done(self) -> Done:
        """The inputs whose rows it held when it was opened, less those dropped since."""
        ...

    def drop(self, inputs: Iterable[tuple[str, int]]) -> int:
        """Remove the rows of these (uri, copy). Return how many inputs were removed. Call it before `write`."""
        ...

    def write(self, key: InputKey, rows: Sequence[Row]) -> None:
        """Add the rows of an input. Raises OSError that names the file."""
        ...

    def rows(self) -> Iterator[Row]:
        """Yield all rows that it holds, as far as exit codes depend on them. Call it before `write`."""
        ...

    def close(self) -> None:
        """Finish what was written, so that it survives a power failure, and let other runs write."""
        ...

    def __enter__(self) -> Resumable: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


# ending -> module, class, extra that installs the module's imports
RESUMABLE: dict[str, tuple[str, str, str]] = {
    ".jsonl": ("mdmf_deploy.detection.outputs.rows_file", "RowsFile", ""),
    ".csv": ("mdmf_deploy.detection.outputs.rows_file", "RowsFile", ""),
    ".parquet": ("mdmf_deploy.detection.outputs.row_parts", "RowParts", "parquet"),
}


def journal_of(path: Path) -> Path:
    """Return the path of the journal that lies beside a file of rows if runs can add to it."""
    path = path.resolve()  # so that a link to a file has the journal of that file
    return path.with_name(f"{path.name}.resume")


def check_resumable(path: Path) -> None:
    """Raise UsageError if --resume cannot write to an output of this name, or to what is there."""
    ending = path.suffix.lower()
    if ending == ".json":
        raise UsageError(f"-o {path}: nothing can be added to a JSON array; with --resume, choose .jsonl instead")
    if ending not in RESUMABLE:
        raise UsageError(f"-o {path}: with --resume, choose one of {', '.join(RESUMABLE)}")
    if ending == ".parquet" and path.is_file():
        raise UsageError(f"-o {path} is a file; with --resume, rows go into a folder, so choose another name")
    if ending != ".parquet" and path.is_dir():
        raise UsageError(f"-o {path} is a folder; with --resume, only .parquet is one, so choose another name")


def open_resumable(path: Path, settings: RunSettings, *, every_row: bool = False) -> Resumable:
    """Open the output that the path's ending names, or begin it.

    every_row: flush to the disk after every input, not only every few seconds. A folder of parts does so by itself.
    Raises UsageError as `check_resumable`, and if another run is writing it, it was begun with other settings, or it is
    not as a run left it. Raises RuntimeUnavailable if the format's library is not installed.
    """
    check_resumable(path)
    module, name, extra = RESUMABLE[path.suffix.lower()]
    try:
        output: Resumable = getattr(importlib.import_module(module), name)(path, settings, every_row=every_row)
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(f"-o {path}: needs {error.name}; run: {install(extra)}") from error
    return output

"""Folders that others see whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(destination: Path) -> Iterator[Path]:
    """A scratch folder beside the destination to write to; it takes the destination's place once the block is done.

    What was there before stays until all that is new is on disk, and for good if the block raises.  A link to a folder
    stays one.  Raises OSError if it cannot be written.
    """
    destination = destination.resolve()
    destination.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        scratch.chmod(0o755)
        yield scratch
        _sync(scratch)
        if destination.exists():
            retired = scratch.with_name(f"{scratch.name}.old")
            destination.rename(retired)
            try:
                scratch.rename(destination)
            except BaseException:
                retired.rename(destination)
                raise
            shutil.rmtree(retired, ignore_errors=True)
        else:
            scratch.rename(destination)
        _sync_folder(destination.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _sync(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(path: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""The folders of parts that a run writes: rows, and signatures if they are kept."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.fs

from mdmf_deploy.detection.outputs.parquet import schema
from mdmf_deploy.detection.outputs.parts import RUN, PartFolder
from mdmf_deploy.detection.outputs.signatures import KIND, Extractor
from mdmf_deploy.detection.settings import RunSettings


@dataclass(frozen=True, slots=True)
class Outputs:
    """Can be pickled: a worker writes parts by its copy."""

    rows: PartFolder
    signatures: PartFolder | None

    @classmethod
    @contextmanager
    def open(
        cls, rows: str, signatures: str | None, settings: RunSettings, extractor: Extractor | None
    ) -> Iterator[Outputs]:
        """Open or make the folders, and hold their locks during the block. Raises UsageError as PartFolder.open does.

        rows, signatures: paths or URIs.
        extractor: of the signatures. None if there are none to keep.
        """
        with ExitStack() as stack:
            first = stack.enter_context(PartFolder.open(rows, settings, "rows", schema(), resume=True))
            second = None
            if signatures is not None and extractor is not None:
                folder = PartFolder.open(signatures, settings, KIND, extractor.schema, resume=True)
                second = stack.enter_context(folder)
            yield cls(first, second)

    @property
    def folders(self) -> list[PartFolder]:
        return [self.rows] if self.signatures is None else [self.rows, self.signatures]

    def drop(self, inputs: Iterable[tuple[str, int]]) -> None:
        """Remove all about these (uri, copy)."""
        inputs = list(inputs)
        for folder in self.folders:
            folder.drop(inputs)

    def names(self) -> set[str]:
        """Return the names of all parts that are there now. Parts of the two folders have different names."""
        return set().union(*(folder.names() for folder in self.folders))

    def write(self, rows: pyarrow.Table, signatures: pyarrow.Table | None) -> list[str]:
        """Write a part of each and return their names. If only the first is written, its inputs are done again.

        Raises OSError for one that cannot be written, and FileNotFoundError where this machine has another folder.
        """
        for folder in self.folders:
            _check_folder(folder)
        names = [self.rows.write(rows)]
        if self.signatures is not None:
            names.append(self.signatures.write(signatures))
        return names


def _check_folder(folder: PartFolder) -> None:
    """Raise FileNotFoundError if this machine does not see the driver's folder, but may have another of its name."""
    if isinstance(folder.filesystem, pyarrow.fs.LocalFileSystem) and not Path(folder.path, RUN).exists():
        text = f"not the folder of the run on {socket.gethostname()}; all machines must share it, or give a URL"
        raise FileNotFoundError(errno.ENOENT, text, folder.path)

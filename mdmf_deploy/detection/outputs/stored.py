"""A folder of signatures, opened to be read. Memory grows neither with the number of parts nor with their size."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow
import pyarrow.fs
import pyarrow.parquet

from mdmf_deploy.detection.outputs.parts import written, written_parts
from mdmf_deploy.detection.outputs.signatures import KIND, Extractor, StoredBatch, batch_of
from mdmf_deploy.detection.settings import RunSettings
from mdmf_deploy.errors import UsageError

BATCH_BYTES = 8 * 2**20
"""Bytes of signatures that are read at a time, about."""
_READERS = 8  # of footers


@dataclass(frozen=True, slots=True)
class SignaturePart:
    """One part.  path: in the folder's filesystem.  time: when it was written.  replaces: the name of another part."""

    path: str
    time: int
    replaces: str
    rows: int
    extractor: Extractor


class StoredSignatures:
    """The signatures of `mdmf detect --keep-signatures`.

    settings: of the run that extracted them.
    parts: in the order in which they were written.
    """

    def __init__(self, location: str, files: pyarrow.fs.FileSystem, settings: RunSettings, paths: list[str]) -> None:
        self.location, self.settings = location, settings
        self._files = files
        with ThreadPoolExecutor(_READERS) as pool:
            parts = list(pool.map(self._part, paths))
        replaced = {part.replaces for part in parts}
        self.parts = sorted(
            (part for part in parts if part.path.rpartition("/")[2] not in replaced),
            key=lambda part: (part.time, part.path),
        )

    @classmethod
    def open(cls, location: str) -> StoredSignatures:
        """Open a folder, as PartFolder.open reads its location.

        Raises UsageError if it holds no signatures, or if a part is damaged.
        """
        files, paths, settings = written_parts(location, KIND)
        return cls(location, files, settings, paths)

    def __len__(self) -> int:
        """The number of inputs."""
        return sum(part.rows for part in self.parts)

    def batches(self) -> Generator[tuple[Extractor, StoredBatch], None, None]:
        """Yield all rows in the order in which they were stored, and what made them. Raises UsageError as `open`."""
        for part in self.parts:
            try:
                with self._open(part.path) as file:
                    size = sum(file.metadata.row_group(n).total_byte_size for n in range(file.num_row_groups))
                    rows = max(1, BATCH_BYTES * part.rows // max(1, size))
                    for batch in file.iter_batches(rows, use_threads=False):
                        yield part.extractor, batch_of(batch, part.extractor)
            except (OSError, pyarrow.ArrowException, ValueError, TypeError) as error:  # the last two: missing values
                raise _damaged(part.path, error) from error

    def _part(self, path: str) -> SignaturePart:
        try:
            with self._open(path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
        except (OSError, pyarrow.ArrowException) as error:
            raise _damaged(path, error) from error
        extractor = Extractor.read(schema, path)
        return SignaturePart(path, *written(schema), rows, extractor)

    def _open(self, path: str) -> pyarrow.parquet.ParquetFile:
        return pyarrow.parquet.ParquetFile(path, filesystem=self._files, page_checksum_verification=True)


def _damaged(path: str, error: Exception) -> UsageError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return UsageError(
        f"{path}: cannot be read ({reason[0]}); if it is damaged, remove it and give `mdmf detect --resume` again, "
        "which does its inputs again"
    )

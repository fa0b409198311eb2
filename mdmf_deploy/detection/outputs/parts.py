"""A folder of Parquet parts, each whole or absent, that later runs add to. Local, or in any pyarrow filesystem.

    run.json           RunSettings and what kind of parts these are, written first
    part-<key>.parquet rows or signatures of some inputs. Its name is a hash of its inputs' keys and the settings, so
                       a part that is written twice is one file.

Every part begins with the columns of INPUT_COLUMNS, which say what input each of its rows belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow
import pyarrow.fs

from mdmf_deploy.detection.outputs.done import Done
from mdmf_deploy.detection.settings import RunSettings

# input: the uri of the input. It differs from the row's for one frame of a video.
# input_copy: 0, or n for the n-th further time that the same input was given.
# input_size, input_mtime_ns: of the file as it was before it was read. None if the system said nothing.
INPUT_COLUMNS = {
    "input": pyarrow.string(),
    "input_copy": pyarrow.int32(),
    "input_size": pyarrow.int64(),
    "input_mtime_ns": pyarrow.int64(),
}


class PartFolder:
    """See the module. One writer at a time: `open` takes the output's lock where the filesystem is local."""

    @classmethod
    def open(
        cls, location: str, settings: RunSettings, kind: str, schema: pyarrow.Schema, *, resume: bool
    ) -> PartFolder:
        """Open or make the folder.  location: a path, or a URI that pyarrow.fs.FileSystem.from_uri reads.

        kind: "rows" or "signatures".
        schema: of the columns after INPUT_COLUMNS.
        Raises UsageError if the folder holds something else, another run holds it, or its settings differ, with what
        differs. Without resume, a folder that has parts is refused.
        """

    @property
    def done(self) -> Done:
        """The inputs in all parts. Parts that cannot be read are removed first, and said so."""

    def write(self, table: pyarrow.Table) -> str:
        """Write one part and return its name.  table: INPUT_COLUMNS and the schema's columns.

        Safe in another process than the one that opened the folder: pickling keeps what `write` needs.
        """

    def drop(self, inputs: Iterable[tuple[str, int]]) -> int:
        """Remove the rows of these (uri, copy), each part in one step. Return how many inputs were removed."""

    def close(self) -> None:
        """Give the lock back."""


def with_keys(rows: pyarrow.Table, keys: Mapping[str, pyarrow.Array]) -> pyarrow.Table:
    """Return the table with the columns of INPUT_COLUMNS before its own."""

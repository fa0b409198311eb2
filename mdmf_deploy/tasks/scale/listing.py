"""Arguments to a table of inputs, sorted as in a local run. It takes about 100 bytes an input and no Python object.

Local arguments are those of mdmf_deploy.images.inputs. A URL names a file, which is always an input, or a folder. The
rule for a folder's files is the same everywhere: the name says image or video, or else the first bytes do. Those of a
remote file cost a request, so they are read by many threads, and only where the name does not decide.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.fs

from mdmf_deploy.errors import UsageError
from mdmf_deploy.images.inputs import expand, uri
from mdmf_deploy.images.listing import skipped_by_head
from mdmf_deploy.images.magic import HEAD
from mdmf_deploy.tasks.scale.locations import Location, is_url, local_path

AT_ONCE = 1000
"""Inputs whose facts are Python objects at a time. More of them would stay in the driver's memory for the whole run."""

REQUESTS = 32
"""Requests at once while a remote folder is listed."""

SCHEMA = pyarrow.schema(
    {
        "uri": pyarrow.string(),
        "copy": pyarrow.int32(),
        "size": pyarrow.int64(),
        "mtime_ns": pyarrow.int64(),
        "place": pyarrow.int16(),
        "path": pyarrow.binary(),
    }
)
"""uri, copy, size and mtime_ns are those of an InputKey.

place: which of Listing.places the path lies in, or LOCAL.  path: a local path's bytes, or a path within the place.
"""

LOCAL = -1


@dataclass(frozen=True, slots=True)
class Listing:
    """The inputs of a run.

    table: of SCHEMA, in the order of the arguments.
    places: the file systems, each as the location of its root.
    others: suffix -> number of files in folders that are no inputs, as in mdmf_deploy.images.inputs.Inputs.
    """

    table: pyarrow.Table
    places: tuple[Location, ...]
    others: Mapping[str, int]


def list_inputs(
    arguments: Sequence[str], whole_disk: bool = False, tell: Callable[[str], None] = lambda line: None
) -> Listing:
    """List the inputs. The arguments, and the errors for local ones, are those of mdmf_deploy.images.inputs.expand.

    Raises UsageError for a URL that cannot be listed, a folder without images, and a glob in a URL.
    """
    if not arguments:
        raise UsageError("no input was given; name images, folders, globs or URLs such as s3://bucket/prefix")
    maker = _Maker()
    for remote, group in groupby(
        (local_path(argument) or argument for argument in arguments), key=lambda argument: is_url(argument)
    ):
        if remote:
            for argument in group:
                maker.add_url(argument)
        else:
            found = expand(list(group), whole_disk, tell)
            maker.others.update(found.others)
            maker.add_paths(found.paths)
    return maker.listing()


class _Maker:
    def __init__(self) -> None:
        self.others: Counter[str] = Counter()
        self._places: dict[str, int] = {}
        self._locations: list[Location] = []
        self._tables: list[pyarrow.Table] = []

    def listing(self) -> Listing:
        table = pyarrow.concat_tables(self._tables)
        copies = table.schema.get_field_index("copy")
        table = table.set_column(copies, SCHEMA.field("copy"), _copies(table["uri"])).combine_chunks()
        self._tables = []
        pyarrow.default_memory_pool().release_unused()
        return Listing(table, tuple(self._locations), dict(self.others))

    def add_paths(self, paths: Sequence[Path]) -> None:
        """Add local paths, and URLs that stand in a list of paths."""
        for remote, group in groupby(paths, key=lambda path: is_url(str(path))):
            if remote:
                for path in group:
                    self.add_url(str(path))
            else:
                while some := list(islice(group, AT_ONCE)):
                    self._add_local(some)

    def add_url(self, text: str) -> None:
        location = Location.of(text)
        place = self._place(location)
        try:
            info = location.filesystem.get_file_info(location.path)
            if info.type == pyarrow.fs.FileType.Directory:
                self._add_folder(location, place)
                return
        except OSError as error:
            raise UsageError(f"{location}: {location.reason(error)}; check the address and the credentials") from error
        if info.type == pyarrow.fs.FileType.NotFound and any(character in location.key for character in "*?["):
            raise UsageError(f"{location} matches no file; globs are for local paths, so give a folder or an @LIST")
        self._add([info], location, place)

    def _add_folder(self, location: Location, place: int) -> None:
        selector = pyarrow.fs.FileSelector(location.path, recursive=True)
        found = [info for info in location.filesystem.get_file_info(selector) if info.is_file]
        found.sort(key=lambda info: info.path.encode())
        with ThreadPoolExecutor(REQUESTS, thread_name_prefix="mdmf-list") as pool:
            skipped = list(pool.map(lambda info: _skipped(location, info), found))
        self.others.update(suffix for suffix in skipped if suffix is not None)
        kept = [info for info, suffix in zip(found, skipped, strict=True) if suffix is None]
        if not kept:
            raise UsageError(
                f"no images in {location} ({len(found)} other files skipped): neither the name nor the content of a "
                "file says image or video; name files themselves to score them anyway"
            )
        for n in range(0, len(kept), AT_ONCE):
            self._add(kept[n : n + AT_ONCE], location, place)

    def _add(self, infos: Sequence[pyarrow.fs.FileInfo], location: Location, place: int) -> None:
        self._append(
            [location.uri(info.path) for info in infos],
            [info.size for info in infos],
            [info.mtime_ns for info in infos],
            place,
            [info.path.encode() for info in infos],
        )

    def _add_local(self, paths: Sequence[Path]) -> None:
        states = [_state(path) for path in paths]
        self._append(
            [uri(path) for path in paths],
            [size for size, _ in states],
            [mtime for _, mtime in states],
            LOCAL,
            [os.fsencode(path) for path in paths],
        )

    def _append(
        self, uris: list[str], sizes: list[int | None], times: list[int | None], place: int, paths: list[bytes]
    ) -> None:
        places = np.full(len(uris), place, np.int16)
        copies = np.zeros(len(uris), np.int32)
        self._tables.append(pyarrow.table([uris, copies, sizes, times, places, paths], schema=SCHEMA))

    def _place(self, location: Location) -> int:
        if location.root not in self._places:
            self._places[location.root] = len(self._locations)
            self._locations.append(Location(location.root, location.shown, ""))
        return self._places[location.root]


def _skipped(location: Location, info: pyarrow.fs.FileInfo) -> str | None:
    def head() -> bytes:
        if not info.size:
            return b""
        try:
            with location.filesystem.open_input_file(info.path) as file:
                start: bytes = file.read(HEAD)
                return start
        except OSError:  # as for a local file that cannot be read
            return b""

    return skipped_by_head(PurePosixPath(info.path), head)


def _state(path: Path) -> tuple[int | None, int | None]:
    """Return a local file's size and the time of its last change, or None where the system does not tell."""
    try:
        status = os.stat(path)  # noqa: PTH116 (takes names with a NUL to ValueError, as every other name to OSError)
    except (OSError, ValueError):
        return None, None
    return status.st_size, status.st_mtime_ns


def _copies(uris: pyarrow.ChunkedArray) -> pyarrow.Array:
    """Return, for each input, how often it was given before."""
    hashes = np.concatenate([np.fromiter(map(hash, chunk.to_pylist()), np.int64, len(chunk)) for chunk in uris.chunks])
    if len(np.unique(hashes)) == len(uris):
        return pyarrow.array(np.zeros(len(uris), np.int32))
    seen: Counter[str] = Counter()
    copies = np.zeros(len(uris), np.int32)
    for n, name in enumerate(uris.to_pylist()):
        copies[n] = seen[name]
        seen[name] += 1
    return pyarrow.array(copies)

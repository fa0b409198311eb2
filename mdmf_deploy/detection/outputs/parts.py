"""A folder of Parquet parts, each whole or absent, that later runs add to. Local, or in any pyarrow filesystem.

    _run.json           RunSettings and what kind of parts these are, written first
    part-<hash>.parquet rows or signatures of some inputs. The hash is of its inputs' keys and the settings, so a part
                        that is written twice is one file.

Every part begins with the columns of INPUT_COLUMNS, which say what input each of its rows belongs to. The ids and all
settings are in its schema's metadata. Readers of data sets skip names that begin with "_" or ".".
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import pyarrow
import pyarrow.fs
import pyarrow.parquet

from mdmf_deploy.detection.outputs.done import Done, Held, InputKey, digest
from mdmf_deploy.detection.settings import RunSettings
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import atomic_file, only_writer
from mdmf_deploy.scratch import remove_strays

_LOG = logging.getLogger(__name__)

# input: the uri of the input. It differs from the row's for one frame of a video.
# input_copy: 0, or n for the n-th further time that the same input was given.
# input_size, input_mtime_ns: of the file as it was before it was read. None if the system said nothing.
INPUT_COLUMNS = {
    "input": pyarrow.string(),
    "input_copy": pyarrow.int32(),
    "input_size": pyarrow.int64(),
    "input_mtime_ns": pyarrow.int64(),
}
RUN = "_run.json"
# Signatures are noise, which nothing packs. Reading them is to take no longer than reading memory.
_PLAIN: dict[str, dict[str, Any]] = {"signatures": {"compression": "none", "use_dictionary": False}}
# Filesystems in which a new object appears whole or not at all, and renaming would copy it.
_OBJECT_STORES = ("s3", "gcs", "abfs")


class _Run(msgspec.Struct, frozen=True):
    """What _run.json holds. Each part has it in its metadata, too, with the parts that it replaces."""

    kind: str
    settings: RunSettings


class PartFolder:
    """See the module. One writer at a time: `open` takes the output's lock where the filesystem is local.

    location: as it was given to `open`.
    filesystem, path: what pyarrow reads the folder by.
    """

    def __init__(self, location: str, settings: RunSettings, kind: str, schema: pyarrow.Schema) -> None:
        self.location = location
        self.filesystem, self.path = _filesystem(location)
        self._run, self._schema = _Run(kind, settings), _full(schema)
        self._type = self.filesystem.type_name
        self._done: Done | None = None
        self._parts: list[str] = []
        self._held = ExitStack()

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
        folder = cls(location, settings, kind, schema)
        try:
            folder._enter(resume)
        except OSError as error:
            folder.close()
            raise UsageError(
                f"{location}: {error.strerror or error}; choose a place that can be read and written"
            ) from error
        except BaseException:
            folder.close()
            raise
        return folder

    @property
    def done(self) -> Done:
        """The inputs in all parts. Parts that cannot be read are removed first, and said so.

        So are the remains of a run that was killed while it replaced a part. It is read once.
        """
        if self._done is None:
            self._done = self._read()
        return self._done

    def read_again(self) -> Done:
        """Return the inputs in all parts that are there now, as `done` does."""
        self._done = None
        return self.done

    def write(self, table: pyarrow.Table, replaces: str | None = None) -> str:
        """Write one part and return its name.  table: INPUT_COLUMNS and the schema's columns.

        The part keeps the metadata of the table's schema, or else of the folder's.
        replaces: a part that this one takes the place of. It is removed when the next run opens the folder.
        Safe in another process than the one that opened the folder: pickling keeps what `write` needs.
        Raises OSError that names the part if it cannot be written. Then there is no part, or a cut one.
        """
        own = table.schema.metadata or self._schema.metadata or {}
        table = table.select(self._schema.names).cast(self._schema)
        name = f"part-{self._name(table)}.parquet"
        settings = self._run.settings
        facts = {
            "bundle_id": settings.bundle_id,
            "calibration_id": settings.calibration_id or "",
            "mdmf_run": msgspec.json.encode(self._run).decode(),
            "mdmf_written_ns": str(time.time_ns()),
            "mdmf_replaces": replaces or "",
        }
        own = {key: value for key, value in own.items() if key.decode() not in facts}
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(
            table.replace_schema_metadata(own | facts),
            buffer,
            write_page_checksum=True,
            **_PLAIN.get(self._run.kind, {}),
        )
        self._put(name, buffer.getvalue())
        return name

    def drop(self, inputs: Iterable[tuple[str, int]]) -> int:
        """Remove the rows of these (uri, copy), each part in one step. Return how many inputs were removed."""
        places: dict[int, set[bytes]] = {}
        for uri, copy in inputs:
            name = digest(uri, copy)
            place = self.done.place(name)
            if place is not None:
                places.setdefault(place, set()).add(name)
        for place, names in places.items():
            self._rewrite(self._parts[place], names)
        if places:
            self._done = None
        return sum(map(len, places.values()))

    def names(self) -> set[str]:
        """Return the names of the parts that are there now."""
        return set(filter(_is_part, self._names()))

    def tables(self, columns: list[str]) -> Iterator[pyarrow.Table]:
        """Yield these columns of all parts, part by part."""
        for name in filter(_is_part, self._names()):
            with _named(self._at(name)), self.filesystem.open_input_file(self._at(name)) as file:
                yield pyarrow.parquet.read_table(file, columns=columns)

    def close(self) -> None:
        """Give the lock back."""
        self._held.close()

    def __enter__(self) -> PartFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": ExitStack(), "_done": None}

    def _enter(self, resume: bool) -> None:
        """Make the folder, take the lock, and check what the folder holds."""
        if self._type not in _OBJECT_STORES:
            self.filesystem.create_dir(self.path, recursive=True)
        if self._type == "local":
            self._held.enter_context(only_writer(Path(self._at(RUN))))
            remove_strays(Path(self.path))
        names = self._names()
        parts = [name for name in names if _is_part(name)]
        others = [name for name in names if not _is_part(name) and not name.startswith((".", "_"))]
        if others:
            raise UsageError(f"{self.location} holds other files, such as {others[0]}; name a new folder")
        if not parts:
            self._put(RUN, msgspec.json.encode(self._run))
            return
        if not resume:
            raise UsageError(f"{self.location} holds results already; give --resume to add to them, or a new folder")
        if RUN not in names:
            raise UsageError(f"{self.location} holds Parquet files but no {RUN}; name a new folder")
        self._check_run()

    def _check_run(self) -> None:
        with self.filesystem.open_input_stream(self._at(RUN)) as file:
            data = file.read()
        self._check(f"{self.location}/{RUN}", data)

    def _check(self, name: str, data: bytes) -> None:
        """Raise UsageError if this describes a run of another kind, or with other settings."""
        try:
            run = msgspec.json.decode(data, type=_Run)
        except msgspec.MsgspecError as error:
            raise UsageError(
                f"{name} is not one that this version of mdmf-deploy wrote ({error}); name a new folder"
            ) from error
        if run.kind != self._run.kind:
            raise UsageError(f"{self.location} holds {run.kind}, not {self._run.kind}; name a new folder")
        run.settings.check_same(self._run.settings, self.location)

    def _read(self) -> Done:
        """Read the keys of all parts, and mend what a run that was killed has left."""
        parts: dict[str, tuple[int, str]] = {}
        for name in filter(_is_part, self._names()):
            facts = self._facts(name)
            if facts is not None:
                parts[name] = facts
        for _, replaced in list(parts.values()):
            if parts.pop(replaced, None):
                self._remove(replaced)
        self._parts = sorted(parts, key=lambda name: (parts[name], name))
        done = Done(one for place, name in enumerate(self._parts) for one in self._inputs(place, name))
        if not done.older:
            return done
        # A process that outlived a killed run wrote inputs that the next run did as well.
        for place in {place for place, _ in done.older}:
            self._rewrite(self._parts[place], {name for at, name in done.older if at == place})
        return self._read()

    def _facts(self, name: str) -> tuple[int, str] | None:
        """Return when a part was written and what it replaces, or remove it and return None if it is cut."""
        with _named(self._at(name)), self.filesystem.open_input_file(self._at(name)) as file:
            try:
                schema = pyarrow.parquet.read_schema(file)
            except pyarrow.ArrowInvalid:  # not OSError: a part that cannot be reached is no damaged one
                schema = None
        if schema is None:
            _LOG.warning("warning: %s was cut short; it is removed, and its inputs are done again", self._at(name))
            self._remove(name)
            return None
        self._check(self._at(name), (schema.metadata or {}).get(b"mdmf_run", b""))
        return written(schema)

    def _inputs(self, place: int, name: str) -> Iterator[Held]:
        """Yield the inputs of a part. The rows of one input follow each other."""
        facts = [column for column in ("sha256", "error_code") if column in self._schema.names]
        with _named(self._at(name)), self.filesystem.open_input_file(self._at(name)) as file:
            table = pyarrow.parquet.read_table(file, columns=[*INPUT_COLUMNS, *facts])
        lists = [table[column].to_pylist() for column in INPUT_COLUMNS]
        hashes, codes = (
            table[column].to_pylist() if column in facts else [None] * len(table) for column in ("sha256", "error_code")
        )
        before = None
        for *key, sha256, code in zip(*lists, hashes, codes, strict=True):
            if key != before:
                yield Held(InputKey(*key), sha256, code, place)
            before = key

    def _rewrite(self, name: str, without: set[bytes]) -> None:
        """Replace a part by one without these inputs. Until the old one is removed, the new one says so."""
        with _named(self._at(name)), self.filesystem.open_input_file(self._at(name)) as file:
            table = pyarrow.parquet.read_table(file)
        keys = zip(table["input"].to_pylist(), table["input_copy"].to_pylist(), strict=True)
        kept = table.filter(pyarrow.array([digest(*key) not in without for key in keys], pyarrow.bool_()))
        if len(kept):
            self.write(kept, replaces=name)
        self._remove(name)

    def _name(self, table: pyarrow.Table) -> str:
        keys = sorted(set(zip(*(table[column].to_pylist() for column in INPUT_COLUMNS), strict=True)), key=repr)
        return hashlib.blake2b(msgspec.json.encode([self._run, keys]), digest_size=16).hexdigest()

    def _names(self) -> list[str]:
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        with _named(self.path):
            found = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == pyarrow.fs.FileType.File)

    def _put(self, name: str, data: bytes | pyarrow.Buffer) -> None:
        """Write a whole file in one step."""
        path = self._at(name)
        with _named(path):
            if self._type == "local":
                with atomic_file(Path(path)) as scratch:
                    scratch.write_bytes(data)
                return
            # All bytes at once: a stream that is closed after an error would complete the object.
            first = path if self._type in _OBJECT_STORES else self._at(f".{name}.{os.urandom(4).hex()}.tmp")
            file = self.filesystem.open_output_stream(first)
            file.write(data)
            file.close()
            if first != path:
                self.filesystem.move(first, path)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError), _named(self._at(name)):
            self.filesystem.delete_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}"


def with_keys(rows: pyarrow.Table, keys: Mapping[str, pyarrow.Array]) -> pyarrow.Table:
    """Return the table with the columns of INPUT_COLUMNS before its own."""
    columns = [keys[name].cast(kind) for name, kind in INPUT_COLUMNS.items()]
    return pyarrow.Table.from_arrays([*columns, *rows.columns], schema=_full(rows.schema))


def key_columns(keys: Iterable[InputKey]) -> dict[str, pyarrow.Array]:
    """Return the columns of INPUT_COLUMNS of a table with these keys, one a row."""
    columns = list(zip(*keys, strict=True)) or [()] * len(INPUT_COLUMNS)
    return {
        name: pyarrow.array(values, kind) for (name, kind), values in zip(INPUT_COLUMNS.items(), columns, strict=True)
    }


def _full(schema: pyarrow.Schema) -> pyarrow.Schema:
    """Return the schema of a part's columns."""
    keys = [pyarrow.field(name, kind, name not in ("input", "input_copy")) for name, kind in INPUT_COLUMNS.items()]
    return pyarrow.schema([*keys, *schema], schema.metadata)


def written_parts(location: str, kind: str) -> tuple[pyarrow.fs.FileSystem, list[str], RunSettings]:
    """Return the paths of a folder's parts in a filesystem, and the settings of its runs, without taking its lock.

    A part may replace another that is still there (`written`).
    Raises UsageError if the folder holds no results of this kind.
    """
    filesystem, path = _filesystem(location)
    try:
        with filesystem.open_input_stream(f"{path}/{RUN}") as file:
            run = msgspec.json.decode(file.read(), type=_Run)
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(path))
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{location} is no folder of {kind} ({error}); give one that `mdmf detect` wrote") from error
    if run.kind != kind:
        raise UsageError(f"{location} holds {run.kind}, not {kind}; give another folder")
    return filesystem, sorted(info.path for info in found if _is_part(info.base_name)), run.settings


def written(schema: pyarrow.Schema) -> tuple[int, str]:
    """Return when a part was written, in nanoseconds, and the name of the part that it replaces, or "".

    schema: of the part. Raises KeyError if it is none.
    """
    metadata = schema.metadata or {}
    return int(metadata[b"mdmf_written_ns"]), metadata[b"mdmf_replaces"].decode()


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")


def _filesystem(location: str) -> tuple[pyarrow.fs.FileSystem, str]:
    if "://" not in location:
        return pyarrow.fs.LocalFileSystem(), Path(location).resolve().as_posix()
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(location)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(
            f"{location}: {error}; give a folder, or a URI that pyarrow reads, such as s3://bucket/prefix"
        ) from error
    return filesystem, path.rstrip("/")


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Put the name of the file into an error of the system."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of a library. Python would show its text no longer, once there is a name.
            raise OSError(errno.EIO, str(error), path) from error
        error.filename = error.filename or path
        raise

"""A pyarrow filesystem over a local folder, one of whose calls fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.fs


class FailingStore(pyarrow.fs.FileSystemHandler):  # type: ignore[misc]
    """Fails call number `at`, from 1, with EIO. 0 means none of them.

    count: calls so far: of listing, opening, writing, closing, moving and removing.
    struck: the call that failed.
    """

    def __init__(self, at: int = 0) -> None:
        self._at, self._local = at, pyarrow.fs.LocalFileSystem()
        self.count, self.struck = 0, ""

    def strike(self, what: str, path: str) -> None:
        self.count += 1
        if self.count == self._at:
            self.struck = f"{what} {Path(path).name}"
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def get_type_name(self) -> str:
        return "failing"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> Any:
        return self._local.get_file_info(paths)

    def get_file_info_selector(self, selector: pyarrow.fs.FileSelector) -> Any:
        self.strike("list", selector.base_dir)
        return self._local.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.strike("create", path)
        self._local.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        raise NotImplementedError

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise NotImplementedError

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self.strike("remove", path)
        self._local.delete_file(path)

    def move(self, source: str, target: str) -> None:
        self.strike("move", source)
        self._local.move(source, target)

    def copy_file(self, source: str, target: str) -> None:
        raise NotImplementedError

    def open_input_stream(self, path: str) -> Any:
        self.strike("open", path)
        return self._local.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        self.strike("open", path)
        return self._local.open_input_file(path)

    def open_output_stream(self, path: str, metadata: object) -> Any:
        self.strike("open for writing", path)
        return pyarrow.PythonFile(_Writer(path, self), mode="w")

    def open_append_stream(self, path: str, metadata: object) -> Any:
        raise NotImplementedError


class _Writer:
    """Holds no file open: whoever writes need not close it after an error."""

    def __init__(self, path: str, store: FailingStore) -> None:
        self._path, self._store, self.closed = Path(path), store, False
        self._path.write_bytes(b"")

    def write(self, data: bytes) -> int:
        kept = bytes(data)
        try:
            self._store.strike("write", str(self._path))
        except OSError:
            kept = kept[: len(kept) // 2]  # as a disk does that breaks in the middle
            raise
        finally:
            with self._path.open("ab") as file:
                file.write(kept)
        return len(kept)

    def flush(self) -> None:
        """Do nothing: everything is written at once."""

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._store.strike("close", str(self._path))

"""Places in any file system that pyarrow knows, named by URIs: s3://bucket/prefix, gs://bucket/prefix, and so on.

A URI may hold options and credentials, as in s3://KEY:SECRET@bucket/prefix?endpoint_override=host:9000&scheme=http.
They make the file system. No row, no part and no message holds them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

import pyarrow
import pyarrow.fs

from mdmf_deploy.errors import ImageError, MdmfError, UsageError
from mdmf_deploy.files import refuse_url
from mdmf_deploy.images.inputs import escaped_text
from mdmf_deploy.images.limits import ReadLimits
from mdmf_deploy.text import one_line

# pathlib writes "s3://bucket" as "s3:/bucket".
_URI = re.compile(r"([a-z][a-z0-9+.-]+):/{1,3}([^/?]*)([^?]*)(\?.*)?", re.DOTALL | re.IGNORECASE)
_MOST_TEXT = 300
_SHORT = 3  # characters that are nobody's secret, but part of many words


@dataclass(frozen=True, slots=True)
class Location:
    """A file or folder of a file system.

    root: URI of the file system's root, with its options and credentials.
    shown: the same without them, such as "s3://bucket".
    key: what comes behind, without a slash at its beginning and its end. It is taken as it stands: "%20" are three
        characters.
    """

    root: str = field(repr=False)
    shown: str
    key: str

    @classmethod
    def of(cls, text: str) -> Location:
        """Parse a URI. Raises UsageError if it is none, or names a file system that pyarrow does not know."""
        match = _URI.fullmatch(text)
        if match is None:
            raise UsageError(f"{one_line(text)} is no URL of a file system, such as s3://bucket/prefix")
        scheme, authority, key, options = match[1].lower(), match[2], match[3].strip("/"), match[4] or ""
        user, at, host = authority.rpartition("@")
        # Azure's user is a container. Elsewhere it is a name or a key.
        kept = f"{user.partition(':')[0]}@" if at and scheme in ("abfs", "abfss") else ""
        location = cls(f"{scheme}://{authority}/{options}", f"{scheme}://{kept}{host}", key)
        _opened(location.root, location.shown)
        return location

    @property
    def full_uri(self) -> str:
        """The URI by which pyarrow finds it, with its options and credentials."""
        root, mark, options = self.root.partition("?")
        return f"{root}{quote(self.key)}{mark}{options}"

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        return _opened(self.root, self.shown)[0]

    @property
    def path(self) -> str:
        """The path within the file system."""
        base = _opened(self.root, self.shown)[1]
        return f"{base.rstrip('/')}/{self.key}" if self.key else base

    def uri(self, path: str) -> str:
        """Return the name of a path within the file system in rows: one printable line without options."""
        base = _opened(self.root, self.shown)[1].rstrip("/")
        return f"{self.shown}/{escaped_text(path.removeprefix(base).lstrip('/'))}"

    def __str__(self) -> str:
        return self.uri(self.path)

    def read(self, path: str, limits: ReadLimits) -> bytes:
        """Read a file. Raises ImageError missing, not_a_file, unreadable or too_many_bytes."""
        name = self.uri(path)
        try:
            with self.filesystem.open_input_file(path) as file:
                if file.size() <= limits.max_bytes:
                    data: bytes = file.read()
                    return data
        except FileNotFoundError as error:
            raise ImageError("missing", f"{name} does not exist; check the path") from error
        except IsADirectoryError as error:
            raise ImageError("not_a_file", f"{name} is a folder; name an image file") from error
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise ImageError("unreadable", f"{name} cannot be read: {self.reason(error)}") from error
        raise ImageError("too_many_bytes", f"{name} is larger than the {limits.max_bytes} bytes allowed")

    def reason(self, error: BaseException) -> str:
        """Return an error of the file system as one line without credentials."""
        return _reason(error, self.root, self.shown)


def is_url(text: str) -> bool:
    """Return whether an argument is a URL, and no file or folder of that very name."""
    return refuse_url(text) is not None


def local_path(text: str) -> str | None:
    """Return the path that a file:// URL names, or None for any other argument."""
    match = re.match(r"file:/+", text, re.IGNORECASE)
    return None if match is None or not is_url(text) else f"/{text[match.end() :]}"


def whole_uri(text: str) -> tuple[str, str]:
    """Return the name of an output in messages, and the path or the URI by which pyarrow finds it."""
    local = local_path(text) if is_url(text) else text
    if local is not None:
        return local, local
    location = Location.of(text)
    return str(location), location.full_uri


@contextmanager
def without_secrets(outputs: Sequence[str]) -> Iterator[None]:
    """Name outputs in errors as rows would, without their options and credentials. Errors of the system have one line.

    outputs: paths and URIs.
    """
    try:
        yield
    except (MdmfError, OSError) as error:
        locations = [(text, Location.of(text)) for text in outputs if is_url(text)]
        if not locations:
            raise
        line = str(error)
        if isinstance(error, OSError) and error.strerror:
            line = f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror
        for text, location in locations:
            line = _cleaned(line.replace(text, str(location)), location.root, location.shown)
        kind = type(error) if isinstance(error, MdmfError) else UsageError
        raise kind(line) from error


@lru_cache(maxsize=64)
def _opened(root: str, shown: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system of a root, and the root's path in it."""
    try:
        found: tuple[Any, str] = pyarrow.fs.FileSystem.from_uri(root)
    except pyarrow.ArrowInvalid as error:
        raise UsageError(
            f"{shown}: pyarrow knows no such file system ({_reason(error, root, shown)}); give s3://, gs://, "
            "abfs:// or hdfs://, with options that it knows"
        ) from error
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"{shown}: {_reason(error, root, shown)}; check the address and the credentials") from error
    return found


def _reason(error: BaseException, root: str, shown: str) -> str:
    return _cleaned(getattr(error, "strerror", None) or str(error), root, shown)


def _cleaned(text: str, root: str, shown: str) -> str:
    text = text.replace(root, shown)
    user = root.partition("://")[2].partition("/")[0].rpartition("@")[0]
    for secret in user.split(":"):
        for form in (secret, unquote(secret)):
            text = text.replace(form, "...") if len(form) > _SHORT else text
    return one_line(text)[:_MOST_TEXT]

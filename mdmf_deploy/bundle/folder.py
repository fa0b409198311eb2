"""The files of a bundle's folder: which there may be, and how they are read.

A folder may come from anyone. Only regular files are opened, and never through a link: reading a FIFO waits for ever,
a device has no end, and a link leads out of the bundle. A file's size is checked before its bytes are read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mdmf_deploy.bundle.manifest import BANK, CALIBRATION, MANIFEST, MODEL, MODEL_DATA, PROBES, FileEntry
from mdmf_deploy.errors import BundleError
from mdmf_deploy.text import one_line

NAMES = frozenset({MODEL, MODEL_DATA, BANK, CALIBRATION, PROBES})
"""Every file that a manifest may list."""

# Files that systems leave in any folder they show. Nothing reads them.
_LEFT_BY_SYSTEMS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_APPLE_DOUBLE = "._"
# That of a manifest with 10,000 verification records.
_LARGEST_MANIFEST = 16 * 2**20
_CHUNK = 2**20
# Windows has only the last of them. O_NONBLOCK matters if a FIFO takes the file's place between look and open.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


class Identity(NamedTuple):
    """What changes whenever a file is replaced or written to."""

    device: int
    inode: int
    size: int
    modified: int


def identity(path: Path) -> Identity | None:
    """Return the identity of a file, or None if there is none. A link has its own."""
    try:
        return _identity(path.lstat())
    except OSError:
        return None


def check_names(folder: Path, listed: Collection[str]) -> None:
    """Raise BundleError unless the manifest lists every file of the folder, and nothing but a bundle's files.

    listed: the names in the manifest. A model and a bank must be among them.
    """
    for name in listed:
        if Path(name).name != name:
            raise BundleError(f"{folder / MANIFEST}: file name {name!r} leaves the bundle; do not trust it")
        if name not in NAMES:
            raise BundleError(f"{folder / MANIFEST}: lists {name!r}, which no bundle holds; export the bundle again")
    for name in (MODEL, BANK):
        if name not in listed:
            raise BundleError(f"{folder / MANIFEST}: does not list {name}; export the bundle again")
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in listed or entry.name == MANIFEST or _left_by_a_system(entry):
                    continue
                raise BundleError(
                    f"{one_line(str(folder / entry.name))}: is not in the manifest; remove it, or copy the bundle again"
                )
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror}; is this folder a bundle?") from error


def read_manifest(path: Path) -> bytes:
    """Return the bytes of manifest.json. Raises BundleError if it is no regular file, or larger than any manifest."""
    with open_regular(path, "is this folder a bundle?") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST_MANIFEST:
            raise BundleError(f"{path}: has {size} bytes, expected at most {_LARGEST_MANIFEST}; do not trust it")
        return _read(file, path, size)


def read_checked(path: Path, entry: FileEntry) -> tuple[bytes, Identity]:
    """Return a file's bytes, whose hash is that of its entry. Raises BundleError otherwise."""
    with _opened(path, entry) as file:
        found = _identity(os.fstat(file.fileno()))
        data = _read(file, path, entry.size)
    _check_hash(path, hashlib.sha256(data).hexdigest(), entry)
    return data, found


def hash_checked(path: Path, entry: FileEntry) -> Identity:
    """Hash a file of any size, and return its identity. Raises BundleError unless the hash is that of its entry."""
    digest, left = hashlib.sha256(), entry.size
    with _opened(path, entry) as file:
        found = _identity(os.fstat(file.fileno()))
        # A file that grows meanwhile must not be read for ever.
        while left and (chunk := _read(file, path, min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
    _check_hash(path, digest.hexdigest(), entry)
    return found


@contextmanager
def open_regular(path: Path, remedy: str = "copy the bundle again, whole") -> Iterator[BinaryIO]:
    """Open a regular file for reading, without waiting and without following a link.

    remedy: what to do if it cannot be opened.
    Raises BundleError if it cannot be opened, or is anything else.
    """
    try:
        # Look before opening, because opening some devices acts on them.
        _check_regular(path, path.lstat().st_mode)
        descriptor = os.open(path, _FLAGS)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            _check_regular(path, os.fstat(descriptor).st_mode)
            yield file
    except OSError as error:
        # A link that has taken the file's place since.
        if error.errno == errno.ELOOP:
            _check_regular(path, stat.S_IFLNK)
        raise BundleError(f"{path}: {error.strerror}; {remedy}") from error


@contextmanager
def _opened(path: Path, entry: FileEntry) -> Iterator[BinaryIO]:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.size:
            raise BundleError(f"{path}: has {size} bytes, the manifest says {entry.size}; copy the bundle again, whole")
        yield file


def _read(file: BinaryIO, path: Path, size: int) -> bytes:
    """Return at most `size` bytes. Reading may give fewer at a time."""
    data = file.read(size)
    if data is None or len(data) == size:
        return data or b""
    parts = [data]
    while parts[-1] and (left := size - sum(map(len, parts))):
        parts.append(file.read(left) or b"")
    return b"".join(parts)


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISLNK(mode):
        raise BundleError(f"{path}: is a link, which a bundle cannot hold; copy the bundle with `cp -rL`")
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise BundleError(f"{path}: is {kind}, expected a file; do not trust this bundle, or copy it again")


def _check_hash(path: Path, digest: str, entry: FileEntry) -> None:
    if digest != entry.sha256:
        raise BundleError(
            f"{path}: hash {digest[:12]} is not the manifest's {entry.sha256[:12]}; copy the bundle again"
        )


def _identity(found: os.stat_result) -> Identity:
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _left_by_a_system(entry: os.DirEntry[str]) -> bool:
    known = entry.name in _LEFT_BY_SYSTEMS or entry.name.startswith(_APPLE_DOUBLE)
    return known and entry.is_file(follow_symlinks=False)

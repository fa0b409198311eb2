"""The package's rooms and its cache, atomic writes, and file hashes."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mdmf_deploy.errors import UsageError
from mdmf_deploy.interrupts import at_stake, held_back
from mdmf_deploy.scratch import (
    SAFELY,
    exchange,
    hidden,
    is_at,
    lock,
    named,
    remove_strays,
    scratch_file,
    scratch_folder,
)

CACHE_VARIABLE = "MDMF_CACHE"

# What to do about an error of the system, where that is not to choose another place.
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EIO: "check the disk",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs, since the system has too many files open",
}

_LOG = logging.getLogger(__name__)
_PACKAGE = Path(__file__).resolve().parent


def room(name: str) -> Path:
    """Return the folder of the room `name` ("export", "engines" or "examples").

    Rooms lie beside the package in a checkout and inside it in an installed wheel.
    Raises UsageError if the installation has no such room.
    """
    for candidate in (_PACKAGE / "_rooms" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise UsageError(f"room {name!r} is missing beside {_PACKAGE}; reinstall mdmf-deploy")


def cache_folder(kind: str) -> Path:
    """Return the cache folder for one kind of compiled file, and create it if needed.

    Its files may be deleted at any time. It lies below $MDMF_CACHE if that is set, else where this system keeps
    caches: $XDG_CACHE_HOME, %LOCALAPPDATA% or ~/.cache.
    Raises UsageError if it cannot be created, or if no variable names it and this user has no home.
    """
    try:
        folder = _cache_root() / kind
    except RuntimeError as error:  # from Path.home()
        raise UsageError(
            f"cache: this user has no home folder; set {CACHE_VARIABLE} to a folder you can write to"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cache {folder}: {error.strerror}; set {CACHE_VARIABLE} to a folder you can write to"
        ) from error
    return folder


def write_to_cache(path: Path, data: bytes) -> None:
    """Write a cache file atomically. The last of several writers wins.

    Raises UsageError if it cannot be written.
    """
    remove_strays(path.parent, path.name)
    try:
        with atomic_file(path) as scratch:
            scratch.write_bytes(data)
    except OSError as error:
        raise UsageError(failure(path, error, f"set {CACHE_VARIABLE} to another folder")) from error


def refuse_url(path: str | Path) -> str | None:
    """Return a line that refuses a URL given in place of the path of an input, or None for a path."""
    name = url_in(path)
    if name is None:
        return None
    if name.startswith("file:"):
        return f"{name} is a URL; give the path of the file instead"
    return f"{name} is a URL; mdmf reads files only and never the network; save it to a file first"


def url_in(path: str | Path) -> str | None:
    """Return the URL that is given in place of a path, as one printable line, or None for a path.

    A file or folder of that very name is no URL. A Path holds "https://host" as "https:/host".
    """
    match = re.match(r"(data:|[a-z][a-z0-9+.-]+:/)/*(.*)", str(path), re.DOTALL | re.IGNORECASE)
    if match is None or os.path.lexists(path):
        return None
    scheme = match[1].lower()
    url = f"{scheme}{'' if scheme == 'data:' else '//' if scheme == 'file:/' else '/'}{match[2]}"
    # A data URL may hold a whole image.
    return "".join(character if character.isprintable() else "?" for character in url[:200])


def failure(what: object, error: OSError, otherwise: str) -> str:
    """Return one line about something that could not be written.

    what: its path, or the option with its path.
    otherwise: what to do if the system's reason suggests nothing better than another place.
    """
    remedy = _REMEDIES.get(error.errno or 0, otherwise)
    return f"{what}: {error.strerror or error}; {remedy}"


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a scratch path beside `path`. The file written there takes the name `path` when the block ends.

    Other processes see the old file or the whole new one, and the last of several writers wins. If the block raises,
    the old file stays.
    durable: whether that also holds after a power failure, for which the file must be flushed to the disk.
    Raises OSError, which names `path`, if the file cannot be written.
    """
    with named(path), scratch_file(path) as scratch:
        yield scratch
        if durable:
            replace_durably(scratch, path)
        else:
            scratch.replace(path)


def replace_durably(scratch: Path, path: Path) -> None:
    """Flush a finished file to disk and rename it to `path`, replacing any file there. Raises OSError."""
    _sync_file(scratch)
    scratch.replace(path)
    _sync_names(path)


@contextmanager
def atomic_folder(destination: Path) -> Iterator[Path]:
    """Yield a scratch folder beside the destination. It takes the destination's place when the block ends.

    The old folder stays until the new one is on disk. Then they exchange their names in one step, where the system
    can. If the block raises, the old one stays for good. A link to a folder stays a link. Another writer of the same
    destination waits until this one is done.
    Raises OSError, which names the destination, if the folder cannot be written.
    """
    destination = destination.resolve()
    destination.parent.mkdir(parents=True, exist_ok=True)
    with named(destination), only_writer(destination, wait=True):
        _bring_back(destination)
        with scratch_folder(destination) as scratch:
            yield scratch
            _sync_tree(scratch)
            with held_back():
                if not destination.exists():
                    scratch.rename(destination)
                elif not exchange(scratch, destination):
                    retired = _retired(destination)
                    destination.rename(retired)
                    try:
                        scratch.rename(destination)
                    except BaseException:
                        retired.rename(destination)
                        raise
                _sync_names(destination)
                _bring_back(destination)


@contextmanager
def only_writer(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of an output: at most one process writes `path` at a time, in whatever container it runs.

    The lock is on a file beside the output, `.<name>.lock`, which goes away at the end. A run that is killed leaves it
    behind, empty and unlocked, and the next one uses it. Scratch files that a dead run left of this output are removed.
    Threads exclude each other, too, so a thread that asks for a lock it holds waits for itself.
    wait: wait for another writer. Otherwise raise UsageError that names the path.
    Where there are no locks (Windows, some network file systems), this excludes nobody.
    Raises OSError if the folder takes no lock file.
    """
    output = path.resolve()  # so that a link and what it names are one output
    name = hidden(output, ".lock")
    descriptor: int | None = None
    with at_stake():
        try:
            if sys.platform != "win32":
                descriptor = _lock_file(name, path, wait)
                remove_strays(output.parent, output.name)
            yield
        finally:
            with held_back():
                if descriptor is not None:
                    # Before it is unlocked: afterwards, it may be another writer's.
                    with suppress(OSError):
                        name.unlink()
                    os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lock_file(name: Path, path: Path, wait: bool) -> int:
    """Open and lock the lock file `name` of `path`, and return its descriptor."""
    while True:
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | SAFELY, 0o666)
        except PermissionError:
            if not name.exists():
                raise
            descriptor = os.open(name, os.O_RDONLY | SAFELY)  # another user's
        try:
            locked = lock(descriptor)
            if wait and locked is False:
                _LOG.info("%s: waiting for another process that is writing it", path)
                locked = lock(descriptor, wait=True)
            # The writer before may have removed the file while this one waited for it.
            if locked is not False and is_at(descriptor, name):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if locked is False:
            raise UsageError(f"{path}: another process is writing it; wait for its end, or choose another output")


def _retired(destination: Path) -> Path:
    return hidden(destination, ".mdmf-old")


def _bring_back(destination: Path) -> None:
    """Remove the retired folder, or bring it back if a run was killed between the two renames."""
    retired = _retired(destination)
    if retired.is_symlink() or not retired.is_dir():
        return
    if destination.exists():
        shutil.rmtree(retired, ignore_errors=True)
    else:
        retired.rename(destination)


def _cache_root() -> Path:
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "mdmf-deploy"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mdmf-deploy"


def _sync_file(path: Path) -> None:
    # Windows flushes only files that are open for writing.
    with path.open("rb" if os.name == "posix" else "r+b") as file:
        os.fsync(file.fileno())


def _sync_tree(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _sync_tree(path)
        else:
            _sync_file(path)
    _sync_folder(folder)


def _sync_folder(path: Path) -> None:
    if os.name != "posix":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # files may be made in it, but not listed
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # some file systems flush no folders
            raise
    finally:
        os.close(descriptor)


def _sync_names(path: Path) -> None:
    """Flush the folder that holds a path, so that the path still means the new file after a power failure."""
    try:
        _sync_folder(path.parent)
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}; the new one is in place, but might not survive a power failure", str(path)
        ) from error

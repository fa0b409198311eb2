"""Temporary files and folders beside an output, and the locks that tell whose writer still lives.

A scratch file of `rows.jsonl` is called `.rows.jsonl.<16 hex digits>.mdmf-tmp`. The digits are random, because process
ids are the same in many containers. Its writer holds a lock on it, which the system gives back when the process ends,
however it ends. So a scratch file whose lock can be taken is a stray of a dead run.

The locks are flock's. They also hold between containers that share a folder. Windows and some network file systems
have none: there, every scratch file counts as alive and stays.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mdmf_deploy.interrupts import at_stake, held_back

SCRATCH = ".mdmf-tmp"

_LOG = logging.getLogger(__name__)
_TRIES = 100
_LONGEST = 200  # bytes of a name. File systems allow 255, and a scratch file's ending takes some.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF}
# EPERM comes from containers whose filter of system calls is older than this one.
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_RENAME_SWAP = 2  # of macOS
# Windows lacks some of these flags.
SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def hidden(path: Path, ending: str) -> Path:
    """Return the path of a hidden file that belongs to `path` and lies beside it."""
    name = os.fsencode(path.name)
    # A name that is nearly too long leaves no room for an ending.
    short = path.name if len(name) <= _LONGEST else hashlib.sha256(name).hexdigest()[:32]
    return path.with_name(f".{short}{ending}")


def lock(descriptor: int, *, wait: bool = False) -> bool | None:
    """Lock an open file or folder until the descriptor is closed.

    Returns True if this locked it, False if somebody else holds the lock, and None where there are no locks.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


@contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """Yield a new, empty scratch file of `path`. At the end it is removed, unless it was renamed.

    It gets the permissions that the user's umask gives any other file. Raises OSError.
    """
    with _held(path, _new_file, lambda scratch: scratch.unlink(missing_ok=True)) as scratch:
        yield scratch


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty scratch folder of `path`. At the end it is removed, unless it was renamed. Raises OSError."""
    with _held(path, _new_folder, lambda scratch: shutil.rmtree(scratch, ignore_errors=True)) as scratch:
        yield scratch


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two files or folders in one step. Return False where the system cannot. Raises OSError."""
    if sys.platform == "win32":
        return False
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        failed = library.renamex_np(*names, _RENAME_SWAP)
    elif hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the path into an error of the system about writing, flushing or closing, which has no name of its own."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def remove_strays(folder: Path, name: str | None = None) -> None:
    """Remove the scratch files and folders in a folder whose writers are dead, and say so on the log.

    name: of the output whose strays are meant. None means every output in the folder.
    """
    known = ".+" if name is None else re.escape(hidden(folder / name, "").name[1:])
    scratch = re.compile(rf"\.{known}\.[0-9a-f]{{16}}{re.escape(SCRATCH)}", re.DOTALL)
    removed: list[str] = []
    with suppress(OSError), os.scandir(folder) as entries:
        found = [folder / entry.name for entry in entries if scratch.fullmatch(entry.name)]
        removed = [path.name for path in found if _remove_stray(path)]
    if removed:
        _LOG.info("%s: removed %s, left by a run that was killed", folder, ", ".join(sorted(removed)))


@contextmanager
def _held(path: Path, create: Callable[[Path], int | None], remove: Callable[[Path], None]) -> Iterator[Path]:
    """Create a scratch file or folder, and hold its lock until it is renamed or removed.

    An error of the system about it names the output instead, which is the name that a user knows.
    """
    scratch: Path | None = None
    descriptor: int | None = None
    with at_stake():
        try:
            # An interrupt has to wait until the name and the descriptor are known.
            with held_back():
                scratch, descriptor = _claimed(path, create)
            yield scratch
        except OSError as error:
            if scratch is not None and isinstance(error.filename, str) and error.filename.startswith(str(scratch)):
                error.filename = str(path) + error.filename.removeprefix(str(scratch))
            raise
        finally:
            with held_back():
                if scratch is not None:
                    remove(scratch)
                if descriptor is not None:
                    os.close(descriptor)


def _claimed(path: Path, create: Callable[[Path], int | None]) -> tuple[Path, int | None]:
    """Create and lock a scratch file or folder under a name that nobody could guess."""
    for _ in range(_TRIES):
        scratch = hidden(path, f".{os.urandom(8).hex()}{SCRATCH}")
        try:
            descriptor = create(scratch)
        except FileExistsError:
            continue
        except OSError as error:
            error.filename = str(path)
            raise
        else:
            # Before it was locked, another process may have taken it for a stray.
            if descriptor is None or (lock(descriptor) is not False and is_at(descriptor, scratch)):
                return scratch, descriptor
            os.close(descriptor)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _new_file(scratch: Path) -> int | None:
    """Create a file, and return an open descriptor, or None on Windows, which renames no open files."""
    descriptor = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | SAFELY, 0o666)
    if sys.platform != "win32":
        return descriptor
    os.close(descriptor)
    return None


def _new_folder(scratch: Path) -> int | None:
    """Create a folder, and return an open descriptor, or None on Windows, which opens no folders."""
    scratch.mkdir()
    if sys.platform == "win32":
        return None
    try:
        return os.open(scratch, os.O_RDONLY | SAFELY)
    except FileNotFoundError as error:  # another process took it for a stray
        raise FileExistsError from error
    except OSError:
        scratch.rmdir()
        raise


def _remove_stray(path: Path) -> bool:
    """Remove a scratch file or folder if its writer is dead. Return whether it was."""
    try:
        folder = stat.S_ISDIR(kind := path.lstat().st_mode)
        if not (folder or stat.S_ISREG(kind)):
            return False  # never made here. Opening it might block or have effects.
        # Some network file systems lock only files that are open for writing.
        descriptor = os.open(path, (os.O_RDONLY if folder else os.O_RDWR) | SAFELY)
    except OSError:
        return False
    try:
        if not (lock(descriptor) and is_at(descriptor, path)):
            return False
        shutil.rmtree(path) if folder else path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True

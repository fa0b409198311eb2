"""Where compiled things are kept between runs (kernels, engines): files that may be deleted at any time."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from mdmf_deploy.errors import UsageError

VARIABLE = "MDMF_CACHE"


def cache_folder(kind: str) -> Path:
    """The folder for one kind of compiled thing, made if need be.

    Below $MDMF_CACHE, or else where this system keeps caches: $XDG_CACHE_HOME, %LOCALAPPDATA% or ~/.cache.
    Raises UsageError if it cannot be made.
    """
    folder = _root() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cache {folder}: {error.strerror}; set {VARIABLE} to a folder you can write to") from error
    return folder


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that others see whole or not at all, also after a crash; the last of several writers wins.

    Raises UsageError if it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        scratch = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; free some space, or set {VARIABLE} to another folder") from error


def _root() -> Path:
    if given := os.environ.get(VARIABLE):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "mdmf-deploy"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mdmf-deploy"

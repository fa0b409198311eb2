"""What an interrupt leaves behind, for the line that ends the command."""

from __future__ import annotations

from pathlib import Path

# What a command is going to write -> what is there before, or None. An inode alone does not tell: a file system may
# give that of a removed file to the next one.
_watched: dict[Path, tuple[int, int] | None] = {}


def watch(path: Path) -> None:
    """Remember what is at a path that the command is going to write. Everything is written by renaming."""
    _watched[path] = _there(path)


def watch_nothing() -> None:
    """Forget the command before this one."""
    _watched.clear()


def kept() -> list[str]:
    """Say of every watched path whether the interrupted command has written it."""
    return [f"{path} {_state(path, before)}" for path, before in _watched.items()]


def _state(path: Path, before: tuple[int, int] | None) -> str:
    now = _there(path)
    if now == before:
        return "was not written" if now is None else "is unchanged"
    return "was written"


def _there(path: Path) -> tuple[int, int] | None:
    """Return the inode of a file or folder, and when it was changed."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns

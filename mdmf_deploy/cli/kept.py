"""What an interrupt leaves behind, for the line that ends the command."""

from __future__ import annotations

from pathlib import Path

# What a command is going to write -> its inode before, or None.
_watched: dict[Path, int | None] = {}


def watch(path: Path) -> None:
    """Remember what is at a path that the command is going to write. Everything is written by renaming."""
    _watched[path] = _inode(path)


def watch_nothing() -> None:
    """Forget the command before this one."""
    _watched.clear()


def kept() -> list[str]:
    """Say of every watched path whether the interrupted command has written it."""
    return [f"{path} {_state(path, before)}" for path, before in _watched.items()]


def _state(path: Path, before: int | None) -> str:
    now = _inode(path)
    if now == before:
        return "was not written" if now is None else "is unchanged"
    return "was written"


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None

"""Folders that are rarely meant to be searched whole: the root of a file system, and the user's home."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath


class Guard:
    """Knows the whole-disk folders of this machine, by any name: a link, "..", a second mount."""

    def __init__(self) -> None:
        self._homes = homes()
        # By the identity of the folder itself, which every name and every mount of it share.
        self._identities: dict[tuple[int, int], str] = {}
        for folder in {Path(os.sep), *self._homes, *(parent for home in self._homes for parent in home.parents)}:
            what = whole_disk(folder, self._homes)
            if what is not None:
                status = folder.stat()
                self._identities[status.st_dev, status.st_ino] = what

    def why(self, folder: str | Path) -> str | None:
        """Return what makes a folder too large to search unasked, such as "your home folder", or None."""
        try:
            real = Path(os.path.realpath(folder))
            status = real.stat()
        except (OSError, ValueError):
            return None
        return whole_disk(real, self._homes) or self.why_status(status)

    def why_status(self, status: os.stat_result) -> str | None:
        """Return the same for the status of a folder."""
        return self._identities.get((status.st_dev, status.st_ino))


def homes() -> tuple[Path, ...]:
    """Return the home folders of this user that exist: the one in the environment, and the system's own."""
    named = [os.path.expanduser("~")]  # noqa: PTH111 (Path.expanduser raises if there is no home)
    try:
        import pwd

        named.append(pwd.getpwuid(os.getuid()).pw_dir)
    except (ImportError, KeyError):  # Windows, or a container's user without an account
        pass
    real = dict.fromkeys(Path(os.path.realpath(name)) for name in named if Path(name).is_absolute())
    return tuple(home for home in real if os.path.isdir(home))  # noqa: PTH112 (Path.is_dir raises without permission)


def whole_disk(folder: PurePath, homes: Sequence[PurePath]) -> str | None:
    """Return what a resolved folder is if it is a root, a home or holds a home, else None."""
    if folder == folder.parent:
        return "the root of a file system"
    if folder in homes:
        return "your home folder"
    if any(folder in home.parents for home in homes):
        return "a folder that holds your home folder"
    return None

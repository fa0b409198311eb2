"""A file of rows and its journal, as a crash at any moment would leave them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mdmf_deploy.detection.outputs.resumable import journal_of

State = tuple[bytes, bytes]  # of the rows and of the journal


def snapshots(
    path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]
) -> list[tuple[bytes | None, bytes | None]]:
    """Both files before each flush to the disk and each renaming, and at the end."""
    found: list[tuple[bytes | None, bytes | None]] = []
    rename = Path.replace

    def look(*_: object) -> None:
        pair = [file.read_bytes() if file.exists() else None for file in (path, journal_of(path))]
        found.append((pair[0], pair[1]))

    def renamed(self: Path, target: Path) -> Path:
        look()
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", look)
        patch.setattr(Path, "replace", renamed)
        look()
        act()
    look()
    return list(dict.fromkeys(found))


def pairs(states: list[tuple[bytes | None, bytes | None]]) -> list[State]:
    """Those in which both files are there."""
    return [(rows, journal) for rows, journal in states if rows is not None and journal is not None]

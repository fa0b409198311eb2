"""Read the folders of the training tests."""

from __future__ import annotations

from pathlib import Path


def paths(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def generated(folder: Path) -> dict[str, list[Path]]:
    return {child.name: paths(child) for child in sorted((folder / "generated").iterdir())}

"""A small data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def dataset(photos: Path, tmp_path: Path) -> Path:
    """A data set of 6 real images, one of them in a sub-folder, 4 of generator a and 2 of generator b."""
    return fill(tmp_path, photos)


@pytest.fixture(scope="session")
def shared_dataset(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data set for tests that do not change it."""
    return fill(tmp_path_factory.mktemp("dataset"), photos)


def fill(folder: Path, photos: Path) -> Path:
    names = sorted(photos.iterdir())
    for part, files in {
        "real": names[:5],
        "real/deeper": names[5:6],
        "generated/b": names[6:8],
        "generated/a": names[8:],
    }.items():
        (folder / part).mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder / part)
    return folder

"""A small data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def dataset(photos: Path, tmp_path: Path) -> Path:
    """A data set of 6 real images, one of them in a sub-folder, 4 of generator a and 2 of generator b."""
    names = sorted(photos.iterdir())
    for folder, files in {
        "real": names[:5],
        "real/deeper": names[5:6],
        "generated/b": names[6:8],
        "generated/a": names[8:],
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        for file in files:
            shutil.copy(file, tmp_path / folder)
    return tmp_path

"""The starter as a model repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.tasks.triton import write_repository


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the starter for the CPU, with thresholds. Never change it."""
    return write_repository(Bundle.open("starter"), tmp_path_factory.mktemp("triton") / "models").path

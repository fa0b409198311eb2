"""A driver of made-up GPUs, built here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _build(source: str, library: Path) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    # Asked for by the name inside it, too, as the real one is.
    name = f"-Wl,-soname,{library.name}"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", name]
    subprocess.run([compiler, *flags, str(HERE / source), "-o", str(library), "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libcuda.so.1 of a machine that is made up; fake_driver.cpp says what can be told to it."""
    return _build("fake_driver.cpp", tmp_path_factory.mktemp("driver") / "libcuda.so.1")


@pytest.fixture(scope="session")
def fake_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What that machine runs when it is to run a kernel."""
    return _build("fake_kernels.cpp", tmp_path_factory.mktemp("kernels") / "kernels.so")

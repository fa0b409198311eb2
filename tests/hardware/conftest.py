"""A driver of made-up GPUs, built here, and the kernels that it runs on the host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fakes.host_kernels import compile_host, compiler

from mdmf_deploy.mmd.cuda.kernels import Kernel

FAKES = Path(__file__).parents[1] / "fakes"


@pytest.fixture(scope="session")
def gxx() -> str:
    return compiler()


@pytest.fixture(scope="session")
def fake_driver(gxx: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libcuda.so.1 of a machine that is made up; fake_driver.cpp says what can be told to it."""
    return _driver(gxx, tmp_path_factory.mktemp("driver") / "libcuda.so.1")


@pytest.fixture(scope="session")
def fake_driver_here(gxx: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for this process: whoever asks for libcuda.so.1 later would be given one of that name."""
    return _driver(gxx, tmp_path_factory.mktemp("driver") / "libmade-up.so.1")


def _driver(gxx: str, library: Path) -> Path:
    # Asked for by the name inside it, too, as the real one is.
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
    subprocess.run([gxx, *flags, str(FAKES / "fake_driver.cpp"), "-o", str(library), "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def fake_kernels(gxx: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What that machine runs when it is to run a kernel; of the reduction, the plain one for d = 64."""
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    kernel = Kernel("plain", "fp32", 64)
    compile_host(kernel, kernel.source, FAKES / "fake_kernels.cpp", library, "-O2", "-shared", "-fPIC")
    return library

"""A fake driver of made-up GPUs, compiled here, and the kernels it runs on the host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fakes.host_kernels import LIBRARY, compile_host, compiler

from mdmf_deploy.mmd.cuda.kernels import Kernel

FAKES = Path(__file__).parents[1] / "fakes"


@pytest.fixture(scope="session")
def gxx() -> str:
    return compiler()


@pytest.fixture(scope="session")
def driver_object(gxx: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile fake_driver.cpp once, to be linked under several names."""
    compiled = tmp_path_factory.mktemp("driver") / "driver.o"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-c"]
    subprocess.run([gxx, *flags, str(FAKES / "fake_driver.cpp"), "-o", str(compiled)], check=True)
    return compiled


@pytest.fixture(scope="session")
def fake_driver(gxx: str, driver_object: Path) -> Path:
    """Build libcuda.so.1 of a made-up machine. fake_driver.cpp lists its settings."""
    return _linked(gxx, driver_object, "libcuda.so.1")


@pytest.fixture(scope="session")
def fake_driver_here(gxx: str, driver_object: Path) -> Path:
    """Build the same driver under another name, so that later loads of libcuda.so.1 in this process don't get it."""
    return _linked(gxx, driver_object, "libmade-up.so.1")


def _linked(gxx: str, driver_object: Path, name: str) -> Path:
    library = driver_object.with_name(name)
    # The loader also finds a library by its soname, as it does the real driver.
    flags = ["-shared", f"-Wl,-soname,{name}", "-ldl"]
    subprocess.run([gxx, str(driver_object), "-o", str(library), *flags], check=True)
    return library


@pytest.fixture(scope="session")
def fake_kernels(gxx: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the kernels that the fake driver runs: blend, and the plain reduction for d = 64."""
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    kernel = Kernel("plain", "fp32", 64)
    compile_host(kernel, kernel.source, FAKES / "fake_kernels.cpp", library, *LIBRARY, precompiled=True)
    return library

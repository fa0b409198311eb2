"""Each device library, through its real code, over a driver that runs kernels on the host; and on a GPU, given one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.hardware import gpu as probing
from mdmf_deploy.hardware.device import DEVICES, open_device

HERE = Path(__file__).parent
LIBRARIES = {"cuda-core": "cuda.core", "pycuda": "pycuda"}


def run(name: str, environment: dict[str, str]) -> None:
    """on_a_gpu.py in a process of its own: a process has one driver, and keeps it."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "filterwarnings=error", "on_a_gpu.py"]
    paths = [str(Path(open_device.__code__.co_filename).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    done = subprocess.run(
        command, cwd=HERE, env=environment | {"MDMF_TEST_DEVICE": name}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(LIBRARIES[name]) is not None
    except ImportError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the fake driver is made for Linux")
@pytest.mark.parametrize("name", DEVICES)
def test_on_the_fake_driver(name: str, fake_driver: Path, fake_kernels: Path, tmp_path: Path) -> None:
    if not is_there(name):
        pytest.skip(f"{name} is not installed")
    run(name, {"LD_LIBRARY_PATH": str(fake_driver.parent), "FAKE_KERNELS": str(fake_kernels)})


@pytest.mark.gpu
@pytest.mark.parametrize("name", DEVICES)
def test_on_the_gpu(name: str) -> None:
    if not is_there(name):
        pytest.skip(f"{name} is not installed")
    run(name, {})


def test_an_unknown_library_is_told() -> None:
    with pytest.raises(RuntimeUnavailable, match="'opencl' is not known; choose auto or one of cuda-core, pycuda"):
        open_device("opencl")


def test_without_a_driver_no_library_is_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probing, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    monkeypatch.setitem(DEVICES, "pycuda", ("no_such_module", "Nothing", "pycuda"))
    for name in ("auto", "cuda-core", "pycuda"):
        with pytest.raises(RuntimeUnavailable, match="there is no NVIDIA driver"):
            open_device(name)


def test_a_library_that_is_not_installed_is_told_with_its_extra(
    fake_driver_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "LIBRARY", str(fake_driver_here))
    monkeypatch.setitem(DEVICES, "pycuda", ("no_such_module", "Nothing", "pycuda"))
    with pytest.raises(RuntimeUnavailable, match=r"needs no_such_module; run: pip install 'mdmf-deploy\[pycuda\]'"):
        open_device("pycuda")

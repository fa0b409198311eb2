"""Each device library keeps the contract, over a fake driver that runs kernels on the host and on a real GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.hardware import gpu
from mdmf_deploy.hardware.device import DEVICES, Adapter, open_device

HERE = Path(__file__).parent
LIBRARIES = {"cuda-core": "cuda.core", "pycuda": "pycuda"}


def run(name: str, environment: dict[str, str]) -> None:
    """Run device_contract.py in a process of its own, because a process keeps the driver it has loaded."""
    # Other plugins take long to import, and those that happen to be installed warn about the processes of addopts.
    options = ["-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=error"]
    command = [sys.executable, "-m", "pytest", *options, "device_contract.py"]
    paths = [str(Path(open_device.__code__.co_filename).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
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


def test_an_unknown_library_lists_the_known_ones() -> None:
    with pytest.raises(RuntimeUnavailable, match="'opencl' is not known; choose auto or one of cuda-core, pycuda"):
        open_device("opencl")


def test_without_a_driver_no_library_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    monkeypatch.setitem(DEVICES, "pycuda", Adapter("no_such_module", "Nothing", "pycuda"))
    for name in ("auto", "cuda-core", "pycuda"):
        with pytest.raises(RuntimeUnavailable, match="there is no NVIDIA driver"):
            open_device(name)


def test_a_library_that_is_not_installed_names_its_extra(
    fake_driver_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LIBRARY", str(fake_driver_here))
    monkeypatch.setitem(DEVICES, "pycuda", Adapter("no_such_module", "Nothing", "pycuda"))
    with pytest.raises(RuntimeUnavailable, match=r"needs no_such_module; run: pip install 'mdmf-deploy\[pycuda\]'"):
        open_device("pycuda")


@pytest.mark.parametrize(("version", "fits"), [("0.3.1", False), ("0.7.0", False), ("1.0.0b1", True), ("1.2.2", True)])
def test_an_old_cuda_core_is_an_error_with_a_remedy(
    version: str, fits: bool, fake_driver_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / f"cuda_core-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: cuda-core\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gpu, "LIBRARY", str(fake_driver_here))
    monkeypatch.setitem(DEVICES, "cuda-core", DEVICES["cuda-core"]._replace(module="no_such_module"))
    old = rf"cuda-core {version} is too old, expected 1\.0 or newer; run: .*pip install 'mdmf-deploy\[gpu\]'"
    with pytest.raises(RuntimeUnavailable, match="needs no_such_module" if fits else old) as caught:
        open_device()
    assert "\n" not in str(caught.value)

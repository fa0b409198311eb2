"""The probe reports what the driver reports, and each way to have no GPU is one line with a remedy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.hardware import gpu
from mdmf_deploy.hardware.gpu import Gpu, gpus, probe


@pytest.fixture
def made_up(fake_driver_here: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(gpu, "LIBRARY", str(fake_driver_here))
    return monkeypatch


def test_lists_every_gpu_and_opens_the_first(made_up: pytest.MonkeyPatch) -> None:
    first = Gpu("Made-up 4090", (8, 9), 24 << 30, (13, 0), 128)
    second = Gpu("Made-up T4", (7, 5), 15 << 30, (13, 0), 128)
    assert gpus() == (first, second)
    assert probe() == first
    assert (first.sm, second.sm) == (89, 75)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FAKE_CUDA", "11080", r"serves CUDA 11\.8, and 12\.0 is needed; update the driver"),
        ("FAKE_COUNT", "0", "sees no GPU; .*CUDA_VISIBLE_DEVICES"),
        ("FAKE_INIT", "100", "sees no GPU; .*CUDA_VISIBLE_DEVICES"),
        ("FAKE_INIT", "34", "stub, not a driver; install"),
        ("FAKE_INIT", "803", "different versions; restart"),
        ("FAKE_INIT", "999", "CUDA error 999; see what `nvidia-smi` says"),
        ("FAKE_NAME", "101", "CUDA error 101"),
    ],
)
def test_each_refusal_is_one_line_with_a_remedy(
    made_up: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    made_up.setenv(variable, value)
    with pytest.raises(RuntimeUnavailable, match=message) as caught:
        probe()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("no GPU: ")


def test_the_caller_chooses_the_cuda_version_it_needs(made_up: pytest.MonkeyPatch) -> None:
    made_up.setenv("FAKE_CUDA", "12090")
    assert probe((12, 9)).driver == (12, 9)
    with pytest.raises(RuntimeUnavailable, match=r"serves CUDA 12\.9, and 13\.0 is needed"):
        probe((13, 0))


def test_a_missing_driver_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    with pytest.raises(RuntimeUnavailable, match=r"there is no NVIDIA driver .*; install"):
        probe()


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's message is Linux's")
def test_a_file_that_is_no_library_has_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"not a library")
    monkeypatch.setattr(gpu, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    with pytest.raises(RuntimeUnavailable, match="cannot be loaded") as caught:
        probe()
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_the_real_driver_names_its_gpu() -> None:
    real = probe()
    assert real.name
    assert real.memory > 1 << 30
    assert 50 <= real.sm < 200

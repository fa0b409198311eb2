"""The probe says what the driver says, and each way to have no GPU in one line with its remedy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.hardware import gpu as probing
from mdmf_deploy.hardware.gpu import Gpu, gpus, probe


@pytest.fixture
def made_up(fake_driver_here: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(probing, "LIBRARY", str(fake_driver_here))
    return monkeypatch


def test_tells_every_gpu_and_gives_the_first(made_up: pytest.MonkeyPatch) -> None:
    first = Gpu("Made-up 4090", (8, 9), 24 << 30, (13, 0), 128)
    second = Gpu("Made-up T4", (7, 5), 15 << 30, (13, 0), 128)
    assert gpus() == (first, second)
    assert probe() == first
    assert (first.sm, second.sm) == (89, 75)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
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
    made_up: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    made_up.setenv(variable, value)
    with pytest.raises(RuntimeUnavailable, match=told) as caught:
        probe()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("no GPU: ")


def test_the_caller_says_which_cuda_it_needs(made_up: pytest.MonkeyPatch) -> None:
    made_up.setenv("FAKE_CUDA", "12090")
    assert probe((12, 9)).driver == (12, 9)
    with pytest.raises(RuntimeUnavailable, match=r"serves CUDA 12\.9, and 13\.0 is needed"):
        probe((13, 0))


def test_without_a_driver_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probing, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    with pytest.raises(RuntimeUnavailable, match=r"there is no NVIDIA driver .*; install"):
        probe()


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's words are Linux's")
def test_a_library_that_is_no_library_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"not a library")
    monkeypatch.setattr(probing, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    with pytest.raises(RuntimeUnavailable, match="cannot be loaded") as caught:
        probe()
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_the_real_driver_names_its_gpu() -> None:
    gpu = probe()
    assert gpu.name
    assert gpu.memory > 1 << 30
    assert 50 <= gpu.sm < 200

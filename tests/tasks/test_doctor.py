"""`mdmf doctor` reports the surprises of machines unlike this one."""

from __future__ import annotations

import shutil

import msgspec
import onnxruntime
import pytest

from mdmf_deploy.hardware import host
from mdmf_deploy.tasks import doctor

X86 = "processor\t: 0\nmodel name\t: AMD EPYC 9R14\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 sse4_2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd aes i8mm bf16\n"


def test_cpu() -> None:
    assert host.read_cpuinfo(X86) == ("AMD EPYC 9R14", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"))
    assert host.read_cpuinfo(ARM) == ("", ("asimd", "i8mm", "bf16"))
    assert host.read_cpuinfo("") == ("", ())


@pytest.mark.parametrize(
    ("architecture", "features", "saturates"),
    [
        ("x86_64", ("avx2", "avx512f"), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx2", "avx512f", "avx512_vnni"), False),
        # Windows and macOS have no /proc/cpuinfo.
        ("AMD64", (), True),
        ("aarch64", ("asimd",), False),
        ("arm64", (), False),
    ],
)
def test_where_int8_saturates(
    architecture: str, features: tuple[str, ...], saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: architecture)
    monkeypatch.setattr("mdmf_deploy.hardware.host.this_cpu", lambda: ("", features))
    assert host.saturates_int8() is saturates


@pytest.mark.parametrize(
    ("installed", "providers", "gpus", "core_limit", "expected"),
    [
        ({"onnxruntime"}, ["CPUExecutionProvider"], (), None, []),
        ({"onnxruntime-gpu"}, ["CUDAExecutionProvider"], ("NVIDIA H100",), None, []),
        ({"onnxruntime-gpu"}, ["CUDAExecutionProvider"], (), None, ["it would fall back to the CPU"]),
        ({"onnxruntime", "onnxruntime-gpu"}, [], (), None, ["overwrite each other's files"]),
        (set(), [], (), 2.0, ["2 of the 8 cores"]),
        (set(), [], (), 16.0, []),
    ],
)
def test_notes_name_what_will_not_work_as_expected(
    installed: set[str],
    providers: list[str],
    gpus: tuple[str, ...],
    core_limit: float | None,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = msgspec.structs.replace(host.look_at_machine(), cores=8, core_limit=core_limit, gpus=gpus)
    monkeypatch.setattr(doctor, "look_at_machine", lambda: here)
    monkeypatch.setattr(doctor, "installed", installed.__contains__)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if gpus else None)
    notes = doctor.diagnose().notes
    assert len(notes) == len(expected)
    assert all(text in note for text, note in zip(expected, notes, strict=True))

"""What `mdmf doctor` finds out, on machines that this one is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from mdmf_deploy import machine

X86 = "processor\t: 0\nmodel name\t: AMD EPYC 9R14\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 sse4_2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd aes i8mm bf16\n"


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_cpu() -> None:
    assert machine.read_cpuinfo(X86) == ("AMD EPYC 9R14", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"))
    assert machine.read_cpuinfo(ARM) == ("", ("asimd", "i8mm", "bf16"))
    assert machine.read_cpuinfo("") == ("", ())


def test_the_tightest_limit_of_version_2_counts(tmp_path: Path) -> None:
    group(tmp_path, "", cpu__max="max 100000\n")
    group(tmp_path, "pods", cpu__max="150000 100000\n", memory__max="2000\n")
    group(tmp_path, "pods/mine", cpu__max="400000 100000\n", memory__max="max\n")
    assert machine.core_limit(tmp_path, "0::/pods/mine\n") == 1.5
    assert machine.memory_limit(tmp_path, "0::/pods/mine\n") == 2000
    assert machine.core_limit(tmp_path, "0::/elsewhere\n") is None


def test_limits_of_version_1(tmp_path: Path) -> None:
    group(tmp_path, "cpu", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    group(tmp_path, "cpu/box", cpu__cfs_quota_us="50000\n", cpu__cfs_period_us="100000\n")
    group(tmp_path, "memory/box", memory__limit_in_bytes=f"{2**63 - 4096}\n")
    membership = "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n"
    assert machine.core_limit(tmp_path, membership) == 0.5
    assert machine.memory_limit(tmp_path, membership) is None


def test_no_limits_are_not_zero(tmp_path: Path) -> None:
    assert machine.core_limit(tmp_path, "") is None
    assert machine.core_limit(tmp_path / "missing", "0::/\n") is None


@pytest.mark.parametrize(
    ("installed", "providers", "gpus", "core_limit", "said"),
    [
        ({"onnxruntime"}, ["CPUExecutionProvider"], (), None, []),
        ({"onnxruntime-gpu"}, ["CUDAExecutionProvider"], ("NVIDIA H100",), None, []),
        ({"onnxruntime-gpu"}, ["CUDAExecutionProvider"], (), None, ["it would fall back to the CPU"]),
        ({"onnxruntime", "onnxruntime-gpu"}, [], (), None, ["overwrite each other's files"]),
        (set(), [], (), 2.0, ["2 of the 8 cores"]),
        (set(), [], (), 16.0, []),
    ],
)
def test_notes(
    installed: set[str],
    providers: list[str],
    gpus: tuple[str, ...],
    core_limit: float | None,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = msgspec.structs.replace(machine.look_at_machine(), cores=8, core_limit=core_limit, gpus=gpus)
    monkeypatch.setattr(machine, "look_at_machine", lambda: here)
    monkeypatch.setattr(machine, "_installed", installed.__contains__)
    monkeypatch.setattr(machine, "_providers", lambda: providers)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if gpus else None)
    notes = machine.diagnose().notes
    assert len(notes) == len(said)
    assert all(text in note for text, note in zip(said, notes, strict=True))

"""What `mdmf doctor` finds out, on machines that this one is not."""

from __future__ import annotations

import shutil

import msgspec
import pytest

from mdmf_deploy.hardware import host
from mdmf_deploy.tasks import doctor


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
    here = msgspec.structs.replace(host.look_at_machine(), cores=8, core_limit=core_limit, gpus=gpus)
    monkeypatch.setattr(doctor, "look_at_machine", lambda: here)
    monkeypatch.setattr(doctor, "installed", installed.__contains__)
    monkeypatch.setattr(doctor, "_providers", lambda: providers)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if gpus else None)
    notes = doctor.diagnose().notes
    assert len(notes) == len(said)
    assert all(text in note for text, note in zip(said, notes, strict=True))
